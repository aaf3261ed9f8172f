"""The page of an evaluation, as a browser without scripts shows it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ldm.evaluation.metrics import GROUPS, Metric
from ldm.evaluation.page import write_page
from ldm.evaluation.scorers import Case
from ldm.evaluation.summary import CaseScores, Score, Summary
from ldm.util import UserError

HOSTILE = ["<script>alert(1)</script>", "</script><b>", "\"'><img src=x onerror=alert(1)>", "&amp;", "a\udcff"]


class Page(HTMLParser):
    """rows: of all tables, the texts of their cells and the sources and alternative texts of their images."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.rows, self.words = text, [], [], []
        self.inside = None  # the tag of the cell that is being read
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "tr":
            self.rows.append({"cells": [], "images": [], "alts": []})
        elif tag in ("td", "th"):
            self.rows[-1]["cells"].append("")
            self.inside = tag
        elif tag == "img" and self.inside:
            self.rows[-1]["images"].append(attributes["src"])
            self.rows[-1]["alts"].append(attributes["alt"])

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, {}))
        if tag in ("td", "th"):
            self.inside = None

    def handle_data(self, data):
        self.words.append(data)
        if self.inside:
            self.rows[-1]["cells"][-1] += data

    def cases(self):
        heads = [i for i, row in enumerate(self.rows) if row["cells"][0] == "case"]
        return self.rows[heads[0] + 1 :]

    def data(self):
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text)[1])


def score(key, better="higher", group="beside", name=None, meaning="words", value=1.5, low=None, high=None, cases=3):
    return Score(Metric(key, name or key.upper(), group, better, None, meaning), value, low, high, cases)


def summary(per_case, scores=(), **fields):
    """per_case: dicts of an id and values of metrics."""
    cases = [CaseScores(case["id"], {key: value for key, value in case.items() if key != "id"}) for case in per_case]
    given = {"results": "results/here", "bench": "bench", "date": "2026-11-21", "expected": len(cases), "problems": {}}
    return Summary(**given | {"scores": scores, "weights": {}, "per_case": cases} | fields)


def load(name):
    """A case with four pictures that no other case has."""
    rng = np.random.default_rng(list(name.encode("utf-8", "surrogateescape")))
    source, reference, result = (Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)) for _ in range(3))
    mask = Image.new("L", (18, 12))  # of the source's shape, larger
    mask.paste(255, (6, 4, 12, 8))
    return Case(0, name, source, mask, reference, result)


def render(folder, what, load=load, **options):
    write_page(folder / "page.html", what, load, **options)
    assert [path.name for path in folder.iterdir()] == ["page.html"]
    return Page((folder / "page.html").read_text(encoding="utf-8"))


def uris(page):
    return re.findall(r"data:image/[^\"']*", page.text)


def test_every_case_is_listed_with_its_pictures_once(tmp_path):
    cases = [{"id": f"{i:04}", "clip_score": 80 + i / 7, "seam": None if i == 3 else 1.0} for i in range(12)]
    asked = []
    scores = [score("clip_score"), score("seam")]
    page = render(tmp_path, summary(cases, scores), lambda name: asked.append(name) or load(name))
    assert asked == [case["id"] for case in cases] == [row["cells"][0] for row in page.cases()]
    assert [row["cells"][-2:] for row in page.cases()][:4] == [
        ["80.00", "1.00"],
        ["80.14", "1.00"],
        ["80.29", "1.00"],
        ["80.43", "-"],
    ]
    assert len(uris(page)) == len(set(uris(page))) == 4 * len(cases)
    assert all(len(row["images"]) == 4 and len(set(row["alts"])) == 4 for row in page.cases())
    source, painted, _, result = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)
        for uri in page.cases()[0]["images"]
    )
    assert source.shape == painted.shape == result.shape == (6, 9, 3)
    assert page.data()["values"][1][3] is None
    labels = [attributes["data-label"] for tag, attributes in page.tags if tag == "td" and "data-label" in attributes]
    assert labels == ["CLIP_SCORE", "SEAM"] * 12


def test_the_page_needs_no_other_file(tmp_path):
    page = render(tmp_path, summary([{"id": "a", "qs": 1.0}], [score("qs", group="paper")]))
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page.text)
    assert not any(tag in ("link", "iframe", "object") for tag, _ in page.tags)
    assert all("src" not in attributes or tag == "img" for tag, attributes in page.tags)
    assert {attributes["scope"] for tag, attributes in page.tags if tag == "th"} == {"col", "row", "rowgroup"}


def test_hostile_texts_stay_texts(tmp_path):
    cases = [{"id": name, "clip_score": 1.0} for name in HOSTILE]
    bad = HOSTILE[0]
    fields = {
        "bench": bad,
        "results": HOSTILE[2],
        "date": HOSTILE[1],
        "problems": {name: name for name in HOSTILE},
        "skipped": [bad],
        "weights": {HOSTILE[1]: {"model": bad, "file": HOSTILE[2], "sha256": HOSTILE[2]}},
        "settings": {bad: HOSTILE[1], "list": HOSTILE},
    }
    page = render(tmp_path, summary(cases, [score("clip_score", name=HOSTILE[1], meaning=bad)], **fields))
    assert [row["cells"][0] for row in page.cases()] == [*HOSTILE[:4], "a\\udcff"]
    assert [tag for tag, _ in page.tags].count("script") == 2 == page.text.count("</script>")
    assert "i" not in [tag for tag, _ in page.tags]
    assert all(name not in attributes for _, attributes in page.tags for name in ("onerror", "onclick"))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 4 * len(cases) + 1  # the one that enlarges
    assert page.data()["columns"][0]["name"] == HOSTILE[1]
    assert page.words.count(bad) >= 6


@pytest.mark.parametrize("better", ["higher", "lower", "1"])
def test_of_many_cases_the_worst_and_the_best_are_seen(tmp_path, better):
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 0.5, 50)
    cases = [{"id": f"{i:02}", "qs": 1.0, "clip_score": None if i % 10 == 0 else values[i]} for i in range(50)]
    page = render(tmp_path, summary(cases, [score("qs"), score("clip_score", better)]), max_cases=9)
    key = {"higher": lambda x: x, "lower": lambda x: -x, "1": lambda x: -abs(x - 1)}[better]
    ranked = sorted(
        (case for case in cases if case["clip_score"] is not None), key=lambda case: key(case["clip_score"])
    )
    seen = {row["cells"][0] for row in page.cases() if row["images"]}
    assert seen == {case["id"] for case in ranked[:4] + ranked[-4:]}
    assert len(page.cases()) == 50 and len(uris(page)) == 4 * 8
    words = {
        "higher": "the 4 lowest and 4 highest in",
        "lower": "the 4 highest and 4 lowest in",
        "1": "the 4 farthest from 1 and 4 nearest to 1 in",
    }
    assert f"Pictures of 8 of 50 cases: {words[better]} CLIP_SCORE." in page.words


def test_few_scores_and_none(tmp_path):
    cases = [{"id": f"{i}", "clip_score": None, "dino": 0.5 if i < 3 else float("nan")} for i in range(8)]
    what = summary(cases, [score("clip_score"), score("dino")])
    page = render(tmp_path, what, max_cases=4)  # clip_score has no number, so dino chooses the cases
    assert {row["cells"][0] for row in page.cases() if row["images"]} == {"0", "1", "2"}
    assert "Pictures of 3 of 8 cases: all that have a DINO." in page.words
    assert page.data()["values"] == [[None] * 8, [0.5] * 3 + [None] * 5]
    page = render(tmp_path, summary([{"id": str(i)} for i in range(8)]), max_cases=3)
    assert [bool(row["images"]) for row in page.cases()] == [True] * 3 + [False] * 5
    page = render(tmp_path, what, max_cases=0)
    assert not uris(page) and len(page.cases()) == 8


def test_no_cases_at_all(tmp_path):
    page = render(tmp_path, summary([], [score("fid_clip", "lower", "paper", value=None)]))
    assert page.cases() == [] and "No case was scored." in page.words
    assert [row["cells"][1] for row in page.rows if row["cells"][0].startswith("FID_CLIP")] == ["-"]


def test_the_table_of_metrics(tmp_path):
    scores = [
        score("kid", "lower", value=0.002134, low=0.0019, high=0.0024),
        score("seam", "1", value=1.106),
        score("qs", "higher", "paper", value=77.8, low=77.1, high=78.44, cases=3498),
    ]
    page = render(
        tmp_path,
        summary(
            [{"id": "a", "qs": 77.0}, {"id": "b", "qs": 78.6}],
            scores,
            expected=3500,
            problems={"17": "there is no such file"},
            weights={"clip": {"model": "ViT-B-32", "file": "clip.safetensors", "sha256": "0123456789ab" + "f" * 52}},
            settings={"scale": 5},
            skipped=["lpips"],
        ),
    )
    rows = {row["cells"][0]: row["cells"][1:] for row in page.rows}
    assert list(rows)[1:6] == [*[GROUPS["paper"], "QS ↑", GROUPS["beside"]], "KID ↓", "SEAM → 1"]
    assert rows["QS ↑"] == ["77.80", "77.10 to 78.44", "3498", "77.0078.60", "words"]
    assert rows["KID ↓"] == ["0.00213", "0.00190 to 0.00240", "3", "", "words"]
    assert rows["SEAM → 1"][:2] == ["1.11", ""]
    words = "".join(page.words)
    for part in ("2 of 3500 cases", "there is no such file", "sha256 0123456789ab", "scale", "Not computed: lpips"):
        assert part in words


def test_pictures_that_cannot_be_read_are_reported(tmp_path):
    def some(name):
        if name == "b":
            raise UserError("result b.png is <damaged>: make it again")
        return load(name)

    page = render(tmp_path, summary([{"id": name, "clip_score": 1.0} for name in "abc"], [score("clip_score")]), some)
    assert [len(row["images"]) for row in page.cases()] == [4, 0, 4]
    assert page.cases()[1]["cells"] == ["b", "result b.png is <damaged>: make it again", "1.00"]


def test_a_failure_leaves_no_file(tmp_path):
    def some(name):
        if name == "b":
            raise ZeroDivisionError
        return load(name)

    what = summary([{"id": name, "clip_score": 1.0} for name in "abc"], [score("clip_score")])
    with pytest.raises(ZeroDivisionError):
        write_page(tmp_path / "new" / "page.html", what, some)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_region_is_tinted_and_outlined(tmp_path):
    grey = Image.new("RGB", (300, 200), (90, 110, 90))
    mask = Image.new("L", (300, 200))
    mask.paste(255, (75, 50, 225, 150))
    case = Case(0, "a", grey, mask, grey.resize((50, 80)), grey)
    page = render(tmp_path, summary([{"id": "a"}]), lambda name: case, tile=120)
    source, painted, reference, _ = (
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.cases()[0]["images"]
    )
    assert source.size == painted.size == (120, 80) and reference.size == (50, 80)
    assert grey.size == (300, 200)  # the caller's picture is unchanged
    assert np.abs(np.subtract(painted.getpixel((5, 5)), source.getpixel((5, 5)))).max() < 8
    red, green, blue = painted.getpixel((60, 40))
    assert red > green + 60 and blue > green + 30
    assert min(painted.getpixel((30, 40))) > 170  # the outline

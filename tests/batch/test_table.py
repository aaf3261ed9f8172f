"""Tables of edits as spreadsheets and programs write them; every setting as a column; pictures that are there."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.batch.table import BLENDING, COLUMNS, PLACEMENT, SAMPLING, SELECTION, Defaults, read_jobs
from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.editing.metadata import KEY, read_settings
from ldm.editing.options import Blending, Placement, Sampling, Selection, settings_of
from ldm.editing.regions import Region
from ldm.util import UserError

MODEL = ["--config", MINI_CONFIG, "--ckpt", MINI_CKPT, "--device", "cpu", "--sampler", "dpm++"]


def jobs_of(folder, text, encoding="utf-8", **defaults):
    (folder / "jobs.csv").write_bytes(text.encode(encoding))
    return read_jobs(folder / "jobs.csv", Defaults(**defaults))


PLAIN = "image,mask,reference,out,seed,steps\np.png,m.png,r.png,a.png,7.0,\np.png,m.png,r.png,b.png,,12.0\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN + ",,,,,\n\n , ,,,,\n",
        "\n,,\n" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        PLAIN.replace("image,mask,reference,out,seed,steps", " Image, MASK ,Reference,Out,SEED,Steps "),
        PLAIN.replace("image,mask,reference", "image_path,mask_path,reference_path").replace("steps", "ddim_steps"),
        PLAIN.replace("steps\n", "steps,,\n").replace(",7.0,\n", ",7.0,,,\n"),
        PLAIN.replace("image", ",image")
        .replace("p.png,m.png,r.png,a", "0,p.png,m.png,r.png,a")
        .replace("\np", "\n1,p"),
        PLAIN.replace("p.png", '" p.png "').replace("7.0", " 7 ").replace("12.0", "1.2E+01"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets(text, encoding, tmp_path):
    jobs, bad = jobs_of(tmp_path, text, encoding)
    assert not bad
    assert [(job.image.name, job.out.name, job.seed, job.sampling.steps) for job in jobs] == [
        ("p.png", "a.png", 7, 50),
        ("p.png", "b.png", 321, 12),
    ]
    assert jobs[0].regions == (Region(mask=str(tmp_path / "m.png")),)
    assert jobs[0].references == ((tmp_path / "r.png",),)


def test_lines_count_blank_rows(tmp_path):
    _, bad = jobs_of(tmp_path, "\nimage,mask,reference,out,seed\n,,,,\np.png,m.png,r.png,a.png,7.5\n")
    assert [(row.line, row.out) for row in bad] == [(4, "a.png")] and "'7.5' is not a whole number" in bad[0].reason


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("seed", "1.15E+18", "is not a whole number"),  # the digits are lost
        ("seed", "nan", "is not a whole number"),
        ("steps", "1,000", "is not a whole number"),
        ("scale", "much", "is not a number"),
        ("invert", "maybe", "is neither yes nor no"),
        ("alpha", "2", "is neither yes nor no"),
        ("background", "blue", "background 'blue' is unknown"),
        ("context", "0.5", "context 0.5 is out of range"),
        ("preset", "slow", "preset 'slow' is unknown"),
        ("polygon", "1,2 3", "is not of the form x,y x,y x,y"),
        ("box", "1,2,3,4", "both mask and box"),
        ("out", "./p.png", "is one of the row's own pictures"),
        ("reference_mask", "a.png|b.png", "1 references and 2 masks"),
        ("mask", "m.png || n.png", "there are 2 regions: give yes as together"),
        ("together", "maybe", "is neither yes, no nor, for each region, a scale or scale@strength"),
    ],
)
def test_cells_that_cannot_be_used_are_named(column, cell, words, tmp_path):
    row = {"image": "p.png", "mask": "m.png", "reference": "r.png", "out": "a.png"} | {column: cell}
    if column in ("alpha", "polygon"):
        del row["mask"]
    (tmp_path / "jobs.csv").write_text(table([row]))
    jobs, bad = read_jobs(tmp_path / "jobs.csv", Defaults())
    assert not jobs and words in bad[0].reason and bad[0].line == 2


def table(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("image,mask,reference,out,image", "has the column 'image' twice"),
        ("image,mask,reference,out,", "has no name for its column 5"),
        ("image,mask,reference,out,colour", "unknown column 'colour'"),
    ],
)
def test_columns_that_cannot_be_used_are_named(head, words, tmp_path):
    with pytest.raises(UserError, match=words):
        jobs_of(tmp_path, f"{head}\np.png,m.png,r.png,a.png,red\n")


def test_two_names_of_one_file_are_one_out(tmp_path):
    jobs, bad = jobs_of(tmp_path, "image,mask,reference,out\np.png,m.png,r.png,a.png\np.png,m.png,r.png,./b/../a.png\n")
    assert len(jobs) == 1 and "also the out of line 2" in bad[0].reason


def test_paths_of_windows(tmp_path):
    (tmp_path / "photos").mkdir()
    jobs, _ = jobs_of(tmp_path, "image,mask,reference,out\nphotos\\p.png,m\\m.png,r.png,out\\a.png\n")
    assert jobs[0].image == tmp_path / "photos/p.png" and jobs[0].out == tmp_path / "out/a.png"
    assert jobs[0].regions[0].mask == str(tmp_path / "m/m.png")


@pytest.mark.parametrize(
    ("cells", "region"),
    [
        ({"box": "1,2,30,40"}, Region(box=(1, 2, 30, 40))),
        ({"box": "[1, 2, 30, 40]"}, Region(box=(1, 2, 30, 40))),
        ({"box": "(1.0 2.0 30.0 40.0)"}, Region(box=(1, 2, 30, 40))),
        ({"polygon": "1,2 30,4 5,60"}, Region(polygon=((1, 2), (30, 4), (5, 60)))),
        ({"polygon": "[(1, 2), (30, 4), (5, 60)]"}, Region(polygon=((1, 2), (30, 4), (5, 60)))),
        ({"alpha": "TRUE"}, Region(alpha=True)),
        ({"click": "1,2 30,4", "click_not": "5;6"}, Region(click=((1, 2), (30, 4)), click_not=((5, 6),))),
        ({"snap": "1 2 30 40", "click_not": "5,6"}, Region(snap=(1, 2, 30, 40), click_not=((5, 6),))),
        ({"alpha": "1.0"}, Region(alpha=True)),
        ({"alpha": "no", "mask": "/m.png"}, Region(mask="/m.png")),
    ],
)
def test_regions(cells, region, tmp_path):
    (tmp_path / "jobs.csv").write_text(table([{"image": "p.png", "reference": "r.png", "out": "a.png"} | cells]))
    (job,), bad = read_jobs(tmp_path / "jobs.csv", Defaults())
    assert job.regions == (region,) and not bad


def test_every_setting_is_a_column(tmp_path):
    """A row's settings take precedence over the flags', and a row without any has the flags'."""
    changed = {
        **settings_of(Sampling(2.5, "ddim", 9, 0.5, None, 1, 0.8, True, control_scale=0.5)),
        **settings_of(
            Placement("photo", 128, 64, -2.0, True, "pad", True, "hub", True, 0.3, windows=True),
            Blending("feather", 3.0),
        ),
        **Selection(3, "fast", "dinov2").settings,
    }
    del changed["interval"], changed["refresh"]  # those of a preset
    changed["together"] = "no"
    assert set(changed) == {*SAMPLING, *PLACEMENT, *BLENDING, *SELECTION} <= set(COLUMNS)
    files = {"image": "p.png", "mask": "m.png", "reference": "r.png|s.png", "reference_mask": "k.png|l.png"}
    rows = [files | {"out": "a.png"} | changed, files | {"out": "b.png"}, files | {"out": "c.png", "preset": "fast"}]
    (tmp_path / "jobs.csv").write_text(table(rows))
    flags = Defaults(5, Sampling(scale=3.0), Placement(grow=1.0), Blending("none"), None, Selection(2))
    (first, second, third), bad = read_jobs(tmp_path / "jobs.csv", flags)
    assert not bad
    written = settings_of(first.sampling, first.placement, first.blending) | first.selection.settings
    assert written == changed | {"interval": None, "refresh": 1, "together": False}
    assert (second.sampling, second.placement, second.blending) == (flags.sampling, flags.placement, flags.blending)
    assert second.selection == flags.selection
    assert third.sampling == Sampling.choose("fast", scale=3.0)
    assert first.references == ((tmp_path / "r.png", tmp_path / "s.png"),)
    assert first.reference_masks == ((tmp_path / "k.png", tmp_path / "l.png"),)


def test_folders_of_networks_are_relative_to_the_table_like_pictures(tmp_path):
    row = {"image": "p.png", "mask": "m.png", "reference": "r.png", "best": 2}
    rows = [row | {"out": f"{name}.png", "segment": name, "judge": name} for name in ("sam", "/dino")]
    (tmp_path / "jobs.csv").write_text(table(rows))
    jobs, bad = read_jobs(tmp_path / "jobs.csv", Defaults())
    named = [(job.placement.segment, job.selection.judge) for job in jobs]
    assert not bad and named == [(str(tmp_path / "sam"),) * 2, ("/dino",) * 2]


def test_regions_to_be_painted_together(tmp_path):
    """Of several kinds, each with its references and its scale."""
    cells = {
        "mask": "m.png ||",
        "box": " || 1,2,30,40",
        "reference": "a.png || b.png | c.png",
        "together": "5 || 7,5@0,6",
    }
    row = {"image": "p.png", "out": "out.png"} | cells
    bad = {"polygon": "1,2 30,4 5,60", "keep_layout": "ddpm"}
    rows = [row, *(row | {"out": f"{name}.png", name: value} for name, value in bad.items())]
    (tmp_path / "jobs.csv").write_text(table(rows))
    (job,), (one, other) = read_jobs(tmp_path / "jobs.csv", Defaults())
    assert job.regions == (Region(mask=str(tmp_path / "m.png")), Region(box=(1, 2, 30, 40)))
    assert [[path.name for path in group] for group in job.references] == [["a.png"], ["b.png", "c.png"]]
    assert job.placement.together == (5.0, (7.5, 0.6))
    assert "polygon has 1 of 2 regions: add ||" in one.reason
    assert "together and keep_layout exclude each other" in other.reason


def test_a_rows_way_to_keep_the_layout_comes_with_its_own_measure(tmp_path):
    text = "image,mask,reference,out,keep_layout,keep\np.png,m.png,r.png,a.png,ddim,\np.png,m.png,r.png,b.png,,0.5\n"
    (first, second), bad = jobs_of(tmp_path, text, sampling=Sampling(keep_layout="ddpm"))
    assert not bad and [(job.sampling.keep_layout, job.sampling.keep) for job in (first, second)] == [
        ("ddim", 0.4),
        ("ddpm", 0.5),
    ]


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("p", "r", "s"):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    erased = Image.open(tmp_path / "p.png").convert("RGBA")
    erased.paste((0, 0, 0, 0), (20, 10, 60, 50))
    erased.save(tmp_path / "erased.png")
    whole = Image.new("L", (80, 64))
    whole.paste(255, (0, 0, 40, 64))
    whole.save(tmp_path / "half.png")
    return tmp_path


def test_columns_give_what_flags_give(pictures, script):
    """Rows whose settings differ, each against a single edit by flags."""
    flags = {
        "a": ["--polygon", "20,10", "60,10", "40,50", "--background", "poisson", "--grow", 2, "--scale", 2],
        "b": ["--alpha", "--context", "photo", "--reference_fit", "crop"],
        "c": ["--box", "20,10,60,50", "--background", "none", "--strength", 0.6, "--reference_mask_path", "half.png"],
        "d": ["--box", "20,10,60,50", "--invert", "--blend_latents", "--feather", 4, "--background", "feather"],
        "e": ["--box", "4,4,30,60", "--box", "40,4,76,60", "--reference_path", "s.png", "--together", 5, "2@0.6"],
    }
    box = {"box": "20,10,60,50"}
    columns = {
        "a": {"polygon": "20,10 60,10 40,50", "background": "poisson", "grow": 2, "scale": "2,0"},
        "b": {"image": "erased.png", "alpha": "yes", "context": "photo", "reference_fit": "crop"},
        "c": box | {"background": "none", "strength": 0.6, "reference_mask": "half.png"},
        "d": box | {"invert": "TRUE", "blend_latents": 1, "feather": 4, "background": "feather"},
        "e": {"box": "4,4,30,60 || 40,4,76,60", "reference": "r.png || s.png", "together": "5 2@0.6"},
    }
    rows = [
        {"image": "p.png", "reference": "r.png", "out": f"out/{name}.png", "seed": 7} | row
        for name, row in columns.items()
    ]
    (pictures / "jobs.csv").write_text(table(rows))
    code, _, err = script("edit_batch", pictures / "jobs.csv", *MODEL, "--ddim_steps", 2)
    assert code == 0, err
    for name, given in flags.items():
        given = [pictures / word if word in ("half.png", "s.png") else word for word in given]
        image = ["--image_path", pictures / ("erased.png" if name == "b" else "p.png")]
        files = [*image, "--reference_path", pictures / "r.png", "--outdir", pictures / name]
        code, _, err = script("inference", *files, *given, *MODEL, "--ddim_steps", 2, "--seed", 7, "--skip_grid")
        assert code == 0, err
        (single,) = [path for path in (pictures / name).rglob("*.png") if KEY in Image.open(path).info]
        both = [
            np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (single, pictures / f"out/{name}.png")
        ]
        assert np.abs(both[0] - both[1]).max() <= 1, name


def test_pictures_that_are_there_are_kept_unless_asked_otherwise(pictures, script):
    rows = [
        {"image": "p.png", "box": "20,10,60,50", "reference": "r.png", "out": f"{n}.png", "seed": n} for n in (1, 2)
    ]
    (pictures / "jobs.csv").write_text(table(rows))

    def run(*flags, folder=pictures):
        before = {path.name: path.read_bytes() for path in folder.glob("[0-9].png")}
        code, out, err = script("edit_batch", folder / "jobs.csv", *MODEL, "--ddim_steps", 2, *flags)
        assert code == 0, err
        after = {path.name: path.read_bytes() for path in folder.glob("[0-9].png")}
        return out, {name for name in after if before.get(name) != after[name]}

    def reasons():
        with open(pictures / "jobs.results.csv", newline="") as file:
            return {row["out"][-5:]: row["reason"] for row in csv.DictReader(file)}

    assert run()[1] == {"1.png", "2.png"}
    out, changed = run()
    assert not changed and "kept: 2 pictures, as they are there" in out and "made with" not in out
    assert "0 pictures written, 2 kept" in out and reasons() == {"1.png": "", "2.png": ""}
    rows[0]["box"] = "20,10,60,40"
    (pictures / "jobs.csv").write_text(table(rows))
    out, changed = run()
    assert not changed and "is kept, made with regions [{'box': [20, 10, 60, 50]}], not" in out
    assert reasons()["1.png"].startswith("kept, made with regions") and not reasons()["2.png"]
    out, changed = run("--scale", 9)
    assert not changed and out.count("scale 5.0, not 9.0") == 2
    out, changed = run("--scale", 9, "--overwrite")
    assert changed == {"1.png", "2.png"} and "2 pictures written, 0 kept" in out
    assert read_settings(pictures / "1.png")["scale"] == 9 and set(reasons().values()) == {""}
    assert not run("--scale", 9)[1] and set(reasons().values()) == {""}
    Image.new("RGB", (8, 8)).save(pictures / "2.png")
    out, changed = run("--scale", 9)
    assert not changed and "contains no settings" in out
    stranger = PngInfo()
    stranger.add_itxt(KEY, "[" * 100_000)
    Image.new("RGB", (8, 8)).save(pictures / "2.png", pnginfo=stranger)
    assert "contains no settings" in run("--scale", 9)[0]
    Image.new("L", Image.open(pictures / "r.png").size, 255).save(pictures / "whole.png")
    for masks in ("whole.png", ""):
        (pictures / "jobs.csv").write_text(table([rows[0] | {"reference_mask": masks}]))
        out, _ = run("--scale", 9, *(["--overwrite"] if masks else []))
    assert "made with reference_masks [['whole.png']], not None" in out


def test_a_table_in_another_place_has_the_same_settings(pictures, script, monkeypatch):
    """Of paths only the names count."""
    (pictures / "jobs.csv").write_text('image,box,reference,out\np.png,"20,10,60,50",r.png,1.png\n')
    for folder, name in ((pictures, "jobs.csv"), (pictures.parent, Path(pictures.name) / "jobs.csv")):
        monkeypatch.chdir(folder)
        code, out, err = script("edit_batch", name, *MODEL, "--ddim_steps", 2)
        assert code == 0 and "made with" not in out, err

"""The outcome of an evaluation, as the content of scores.json and as a table of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.evaluation.features import CLIP
from ldm.evaluation.metrics import GROUPS, Metric

COCOEE_CASES = 3500  # in the paper's benchmark
MIN_FID_PICTURES = 2048  # the dimension of Inception's features
BETTER = {"higher": "higher", "lower": "lower", "1": "near 1"}


@dataclass(frozen=True)
class Score:
    """A metric's value over all cases, and its 95% confidence interval (low, high); each is None if it does not exist.
    cases: the number of cases with a value."""

    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    cases: int

    def as_json(self) -> dict[str, Any]:
        """The metric's entry in scores.json."""
        metric = self.metric
        return {
            "key": metric.key,
            "name": metric.name,
            "group": metric.group,
            "better": metric.better,
            "meaning": metric.meaning,
            "published": metric.published,
            "low": self.low,
            "high": self.high,
            "value": self.value,
            "cases": self.cases,
        }


@dataclass(frozen=True)
class CaseScores:
    """A case's value of each metric that single cases have. None: the metric does not apply to it."""

    id: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Summary:
    """The scores of an evaluation and everything that they depend on.

    expected: the number of the benchmark's cases; problems: case -> why it is not scored; weights: kind of network ->
    its model, file and sha256; settings: of the edits; real: kind of network -> folder and number of real pictures;
    mixture: file and sha256 of QS's mixture; skipped: keys of metrics; date: ISO 8601."""

    results: str
    bench: str
    expected: int
    problems: Mapping[str, str]
    scores: Sequence[Score]
    weights: Mapping[str, Mapping[str, str]]
    per_case: Sequence[CaseScores]
    settings: Mapping[str, Any] | None = None
    real: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mixture: Mapping[str, str] | None = None
    skipped: Sequence[str] = ()
    date: str = ""

    def as_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        problems = [{"id": name, "problem": problem} for name, problem in self.problems.items()]
        return {
            "results": self.results,
            "bench": self.bench,
            "cases": {"expected": self.expected, "scored": len(self.per_case), "problems": problems},
            "metrics": [score.as_json() for score in self.scores],
            "weights": self.weights,
            "per_case": [{"id": case.id, **case.values} for case in self.per_case],
            "settings": self.settings,
            "real": self.real,
            "mixture": self.mixture,
            "left_out": [{"name": name, "why": "--skip"} for name in self.skipped],
            "date": self.date,
        }


def table(summary: Summary, groups: Mapping[str, str] = GROUPS) -> str:
    """The scores as text, with the published ones where they can be compared. groups: key -> title, in order."""
    return "\n".join(line.rstrip() for line in _lines(summary, groups))


def _lines(summary: Summary, groups: Mapping[str, str]) -> Iterator[str]:
    scored = len(summary.per_case)
    clip = summary.weights.get("clip", {}).get("model", CLIP)
    comparable = clip == CLIP and scored == COCOEE_CASES
    yield f"{scored} of {summary.expected} cases of {summary.bench}: {summary.results}"
    for group, title in groups.items():
        scores = [score for score in summary.scores if score.metric.group == group]
        if scores:
            head = f"{'':18}{'value':>10}  {'95% interval':^20}{'cases':>7}  {'better':8}"
            yield from ("", title, head + ("  published" if group == "paper" and comparable else ""))
        for score in scores:
            published = score.metric.published
            yield _line(score) + (f"  {published:.2f}" if comparable and published else "")
    if clip != CLIP:
        yield from ("", f"CLIP is {clip} here but {CLIP} in the paper: the numbers cannot be compared.")
    if scored < MIN_FID_PICTURES and {"fid_clip", "fid_inception"} & {score.metric.key for score in summary.scores}:
        yield from ("", f"With fewer than {MIN_FID_PICTURES} pictures FID is too high; KID is not.")


def _line(score: Score) -> str:
    value = "-" if score.value is None else f"{score.value:.4g}" if score.value < 1 else f"{score.value:.3f}"
    interval = "" if score.low is None else f"{score.low:.4g} to {score.high:.4g}"
    return f"{score.metric.name:18}{value:>10}  {interval:^20}{score.cases:>7}  {BETTER[score.metric.better]:8}"

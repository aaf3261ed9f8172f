"""A folder of results and the benchmark that they belong to -> scores of every case, and their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation.cases import PreparedCase, PreparedCases, require_no_problems
from ldm.evaluation.folder import batches
from ldm.evaluation.metrics import Metric
from ldm.evaluation.scorers import Scorer
from ldm.evaluation.summary import CaseScores, Score, Summary
from ldm.util import UserError

RESAMPLES = 2000  # of a bootstrap
CONFIDENCE = 0.95  # of intervals


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% confidence interval of the mean of values (n,), by the percentile bootstrap (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def evaluate(
    results: Path,
    bench: COCOImageDataset,
    metrics: Sequence[Metric],
    scorers: Sequence[Scorer],
    allow_missing: bool = False,
    batch_size: int = 16,
) -> Summary:
    """Scores <results>/<id>.png of every case of the benchmark; pictures are not kept in memory.

    metrics: the rows of the summary, in order; scorers: new objects that together compute them (see make_scorers).
    Raises UserError: cases that cannot be scored, unless allow_missing; fewer than two cases that can."""
    computed = {key for scorer in scorers for key in scorer.keys}
    assert computed >= {metric.key for metric in metrics}, computed
    keys = [metric.key for metric in metrics if not metric.of_sets]
    per_case: list[CaseScores] = []
    problems: dict[str, str] = {}
    for batch in batches(PreparedCases(results, bench, scorers), batch_size, "scoring"):
        problems |= {case.id: case.problem for case in batch if case.problem is not None}
        if loaded := [case for case in batch if case.problem is None]:
            per_case += _score(loaded, scorers, keys)
    if not allow_missing:
        require_no_problems(problems, len(bench))
    if len(per_case) < 2:
        raise UserError(f"{results} has {len(per_case)} results that can be scored: make at least two")
    distances = {key: value for scorer in scorers for key, value in scorer.distances().items()}
    assert all(np.isfinite(value) for value in distances.values()), distances
    weights = {scorer.extractor.kind: scorer.extractor.record() for scorer in scorers if scorer.extractor is not None}
    scores = [_summarise(metric, per_case, distances) for metric in metrics]
    return Summary(str(results), str(bench.root), len(bench), problems, scores, weights, per_case)


def _score(cases: Sequence[PreparedCase], scorers: Sequence[Scorer], keys: Sequence[str]) -> Iterator[CaseScores]:
    """The scores of a batch of cases, by the metrics of single cases."""
    values: list[dict[str, float | None]] = [dict.fromkeys(keys) for _ in cases]
    for number, scorer in enumerate(scorers):
        applicable = [i for i, case in enumerate(cases) if case.inputs[number] is not None]
        if not applicable:
            continue
        for key, column in scorer.score([cases[i].inputs[number] for i in applicable]).items():
            if key in keys:
                for i, value in zip(applicable, column, strict=True):
                    values[i][key] = None if value is None else float(value)
    return (CaseScores(case.id, each) for case, each in zip(cases, values, strict=True))


def _summarise(metric: Metric, per_case: Sequence[CaseScores], distances: Mapping[str, float]) -> Score:
    """A metric's mean over the cases that have it, or its distance between sets."""
    if metric.of_sets:
        return Score(metric, distances[metric.key], None, None, len(per_case))
    numbers = np.array([value for case in per_case if (value := case.values[metric.key]) is not None])
    if not len(numbers):
        return Score(metric, None, None, None, 0)
    low, high = mean_interval(numbers)
    return Score(metric, float(numbers.mean()), low, high, len(numbers))

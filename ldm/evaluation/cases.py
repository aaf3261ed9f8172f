"""The cases of a benchmark with their results: loaded for scorers, or checked by their headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from ldm.data.bench.cocoee import COCOImageDataset, raise_on_problems, result_path
from ldm.evaluation.scorers import Case, Scorer
from ldm.images import open_picture, upright_rgb, upright_size
from ldm.util import UserError, cores

MIN_SIDE = 16  # px, of a result


def load_case(results: Path, bench: COCOImageDataset, number: int) -> Case:
    """Raises UserError: a picture that is missing, damaged or too small, a result of another size than its source."""
    name = bench.ids[number]
    source, mask, reference = bench.pictures(number)
    path = result_path(results, name)
    result = upright_rgb(open_picture(path, "result"))
    if result.size != source.size:
        raise UserError(wrong_size(path, result.size, source.size))
    if min(result.size) < MIN_SIDE:
        raise UserError(f"result {path} is less than {MIN_SIDE} pixels wide or high: make it larger")
    return Case(number, name, source, mask, reference, result)


def wrong_size(path: Path, found: tuple[int, int], expected: tuple[int, int]) -> str:
    """The message about a result of another size than its source."""
    return f"result {path} is {found[0]} x {found[1]} but its source is {expected[0]} x {expected[1]}"


@dataclass(frozen=True)
class PreparedCase:
    """inputs: what each scorer's `prepare` returned. problem: why the case cannot be loaded, or None."""

    id: str
    inputs: tuple[Any, ...] = ()
    problem: str | None = None


class PreparedCases(Dataset):
    """`cases[i]`: a case of the benchmark, prepared for the scorers."""

    def __init__(self, results: Path, bench: COCOImageDataset, scorers: Sequence[Scorer]):
        self.results, self.bench, self.scorers = results, bench, scorers

    def __len__(self) -> int:
        return len(self.bench)

    def __getitem__(self, i: int) -> PreparedCase:
        name = self.bench.ids[i]
        try:
            case = load_case(self.results, self.bench, i)
            return PreparedCase(name, tuple(scorer.prepare(case) for scorer in self.scorers))
        except UserError as error:
            return PreparedCase(name, problem=str(error))


def check_results(results: Path, bench: COCOImageDataset) -> dict[str, str]:
    """Case -> what is wrong with it, from headers alone: a missing or damaged file of the benchmark, a missing or
    damaged result, or a result of another size than its source."""
    problems = bench.problems()

    def problem(name: str) -> str | None:
        path = result_path(results, name)
        try:
            found, expected = upright_size(open_picture(path, "result")), bench.size(name)
            return None if found == expected else wrong_size(path, found, expected)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(cores()) as pool:
        names = [name for name in bench.ids if name not in problems]
        found = tqdm(pool.map(problem, names), desc="checking", total=len(names), unit="picture")
        return problems | {name: words for name, words in zip(names, found, strict=True) if words}


def require_no_problems(problems: dict[str, str], count: int) -> None:
    """Raises UserError where cases cannot be scored. problems: case -> what is wrong; count: the benchmark's cases."""
    cure = (
        "remove damaged results and run scripts/inference_test_bench.py again, or score the other cases with "
        "--allow_missing"
    )
    raise_on_problems(problems, count, "be scored", cure)

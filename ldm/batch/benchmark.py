"""All cases of a benchmark, edited: this process's share of those that are not done, in batches, each with its seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from ldm.conventions import tensor_to_image
from ldm.data.bench.cocoee import COCOImageDataset, result_path
from ldm.editing.background import blend
from ldm.editing.inputs import SamplingTask
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import WHOLE_PHOTO, Placement, Sampling, Selection
from ldm.editing.regions import Region
from ldm.files import sha256_of, staging
from ldm.images import grid, open_picture, upright_rgb
from ldm.pipeline import PaintByExample
from ldm.util import UserError

WHOLE = Placement(context=WHOLE_PHOTO)  # as edit.prepare


def require_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or check that the results already there were made with the same. Raises UserError."""
    settings = json.loads(json.dumps(settings))  # as a file has them
    if not path.exists():
        with staging(path.parent) as temporary:
            (temporary / path.name).write_text(json.dumps(settings, indent=1) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --outdir") from error
    for name in dict.fromkeys([*settings, *before]):
        if before.get(name) != settings.get(name):
            raise UserError(
                f"the results in {path.parent} were made with {name} {before.get(name)}, not {settings.get(name)}: "
                "choose another --outdir, or remove them"
            )


def benchmark_settings(
    config: DictConfig,
    ckpt: str | os.PathLike,
    bench: COCOImageDataset,
    precision: str,
    seed: int,
    sampling: Sampling,
    selection: Selection = Selection(),
) -> dict[str, Any]:
    """What a benchmark's edits are made with, for require_same_settings. Raises UserError: a missing checkpoint."""
    model = OmegaConf.to_yaml(config["model"], resolve=True)
    names = ("scale", "sampler", "steps", "interval", "refresh", "eta")
    settings = {name: getattr(sampling, name) for name in names}
    settings |= {name: value for name, value in selection.settings.items() if value is not None}
    settings |= {"seed": seed, "precision": precision, "cases": bench.digest()}
    settings |= {"checkpoint": Path(ckpt).name, "sha256": sha256_of(ckpt)}
    return settings | {"config": hashlib.sha256(model.encode()).hexdigest()}


def detail_settings(detail: str | os.PathLike, scale: float | None) -> dict[str, Any]:
    """What benchmark_settings are joined by for a detail path. scale: None is 1. Raises UserError: a missing file."""
    named = {"detail": Path(detail).name, "detail_sha256": sha256_of(detail)}
    return named | {"detail_scale": 1.0 if scale is None else scale}


def case_seed(seed: int, name: str) -> int:
    """A case's own seed, from the benchmark's seed and the case's id: 0 to 2^63 - 1."""
    state = np.random.SeedSequence((seed, *os.fsencode(name))).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


@dataclass(frozen=True)
class Case:
    name: str
    size: tuple[int, int]  # (width, height) of its photo
    task: SamplingTask


def edit_cases(
    edit: PaintByExample,
    bench: COCOImageDataset,
    todo: Sequence[int],
    results: Path,
    seed: int,
    batch_size: int,
    sampling: Sampling,
    progress: bool = True,
    selection: Selection = Selection(),
) -> list[str]:
    """Write results/<id>.png, of its photo's size, for the cases `todo`, a batch at a time, atomically.

    -> what is wrong with the cases that could not be edited."""
    problems: list[str] = []

    def cases() -> Iterator[Case]:
        for i in todo:
            try:
                photo, mask, reference = bench.pictures(i)
                inputs = edit.prepare(photo, mask, reference)
                own = case_seed(seed, bench.ids[i])
                if selection.best > 1:
                    marked = MarkedPhoto.mark(photo, [Region(mask=mask)], [reference], WHOLE)
                    own = edit.choose_seed(marked, own, selection, sampling, WHOLE, progress=False).seed
            except UserError as error:
                problems.append(str(error))
            else:
                yield Case(bench.ids[i], photo.size, SamplingTask(inputs, own, sampling))

    with tqdm(desc="editing", total=len(todo), unit="picture", disable=not progress) as bar:
        for batch in edit.sample_in_batches(cases(), lambda case: case.task, batch_size):
            with staging(results) as temporary:
                for case, tensor in zip(batch.items, batch.pictures, strict=True):
                    picture = tensor_to_image(tensor)
                    if picture.size != case.size:
                        picture = picture.resize(case.size, Image.Resampling.LANCZOS)
                    picture.save(result_path(temporary, case.name))
            bar.update(len(batch.items))
    return problems


def contact_sheet(
    bench: COCOImageDataset, columns: Sequence[Path], cases: Sequence[int], tile: int = 128
) -> Image.Image:
    """A row per case: photo, photo with its region grey, reference, then its result in each of the folders.

    Results are whole pictures as the autoencoder decodes them; here they fill the region alone, as in an edit.
    tile: side of a picture, pixels."""
    cells = []
    for i in cases:
        photo, mask, reference = bench.pictures(i)
        masked = Image.composite(Image.new("RGB", photo.size, "gray"), photo, mask)
        painted = (upright_rgb(open_picture(result_path(folder, bench.ids[i]), "result")) for folder in columns)
        results = [blend(photo, picture.resize(photo.size), mask) for picture in painted]
        cells += [
            picture.resize((tile, tile), Image.Resampling.BICUBIC) for picture in (photo, masked, reference, *results)
        ]
    return grid(cells, rows=len(cases))

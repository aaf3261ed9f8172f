"""All cases of a benchmark, edited: which are this process's and not yet there, in batches, each with its own seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from ldm.conventions import tensor_to_image
from ldm.data.bench.cocoee import COCOImageDataset, result_path
from ldm.editing.inputs import Inputs, stack
from ldm.files import sha256_of, staging
from ldm.images import grid, open_picture, upright_rgb
from ldm.pipeline import PaintByExample
from ldm.util import UserError, batches_alike


def share() -> tuple[int, int]:
    """(which, of how many) processes this one is, as torchrun says it: RANK and WORLD_SIZE. Raises UserError."""
    words = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if words == [None, None]:
        return 0, 1
    try:
        rank, world = (int(word) for word in words if word is not None)
        if not 0 <= rank < world:
            raise ValueError
    except ValueError as error:
        raise UserError(
            "RANK and WORLD_SIZE: have to be two numbers, RANK from 0 on; unset both, or use torchrun"
        ) from error
    return rank, world


def agree(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings, or sees that the results already there were made with the same. Raises UserError."""
    settings = json.loads(json.dumps(settings))  # as a file has them
    if not path.exists():
        with staging(path.parent) as temporary:
            (temporary / path.name).write_text(json.dumps(settings, indent=1) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name another --outdir") from error
    for name in dict.fromkeys([*settings, *before]):
        if before.get(name) != settings.get(name):
            raise UserError(
                f"{path.parent}: its results were made with {name} {before.get(name)}, not {settings.get(name)}; name "
                "another --outdir, or remove them"
            )


def settings_of(
    config: DictConfig, ckpt: str | os.PathLike, bench: COCOImageDataset, precision: str, seed: int, **sampling: Any
) -> dict[str, Any]:
    """What a benchmark's edits are made with, for `agree`. Raises UserError: a checkpoint that is not there."""
    model = OmegaConf.to_yaml(config["model"], resolve=True)
    settings = {**sampling, "seed": seed, "precision": precision, "cases": bench.digest()}
    settings |= {"checkpoint": Path(ckpt).name, "sha256": sha256_of(ckpt)}
    return settings | {"config": hashlib.sha256(model.encode()).hexdigest()}


def seed_of(seed: int, name: str) -> int:
    """A case's own seed, of the benchmark's and its id, from 0 to 2^63 - 1."""
    state = np.random.SeedSequence((seed, *os.fsencode(name))).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def edit_cases(
    edit: PaintByExample,
    bench: COCOImageDataset,
    todo: Sequence[int],
    results: Path,
    seed: int,
    batch_size: int,
    progress: bool = True,
    **sampling: Any,
) -> list[str]:
    """Writes results/<id>.png, of the size of its photo, for the cases `todo`, a batch at a time, each whole or absent.
    sampling: of PaintByExample.sample, as sampling_of gives it. -> what is wrong with the cases that could not be."""
    problems: list[str] = []

    def cases() -> Iterator[tuple[str, tuple[int, int], Inputs]]:
        for i in todo:
            try:
                photo, mask, reference = bench.pictures(i)
                inputs = edit.prepare(photo, mask, reference)
            except UserError as error:
                problems.append(str(error))
            else:
                yield bench.ids[i], photo.size, inputs

    with tqdm(desc="editing", total=len(todo), unit="picture", disable=not progress) as bar:
        for batch in batches_alike(cases(), batch_size, lambda case: edit.alike(case[-1], **sampling)):
            inputs, seeds = stack([each for *_, each in batch]), [seed_of(seed, name) for name, *_ in batch]
            pictures = edit.sample(inputs, seeds, progress=False, **sampling)
            with staging(results) as temporary:
                for (name, size, _), tensor in zip(batch, pictures, strict=True):
                    picture = tensor_to_image(tensor)
                    if picture.size != size:
                        picture = picture.resize(size, Image.Resampling.LANCZOS)
                    picture.save(result_path(temporary, name))
            bar.update(len(batch))
    return problems


def sheet(bench: COCOImageDataset, columns: Sequence[Path], cases: Sequence[int], tile: int = 128) -> Image.Image:
    """A row per case: photo, photo with its region grey, reference, then its result in each of the folders."""
    cells = []
    for i in cases:
        photo, mask, reference = bench.pictures(i)
        masked = Image.composite(Image.new("RGB", photo.size, "gray"), photo, mask)
        results = [upright_rgb(open_picture(result_path(folder, bench.ids[i]), "result")) for folder in columns]
        cells += [
            picture.resize((tile, tile), Image.Resampling.BICUBIC) for picture in (photo, masked, reference, *results)
        ]
    return grid(cells, rows=len(cases))

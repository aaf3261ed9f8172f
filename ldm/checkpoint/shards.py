"""Weights in one file or in shards, as diffusers, transformers and accelerate name them:

| files                                                   | variant | index                                          |
|---------------------------------------------------------|---------|------------------------------------------------|
| model.safetensors, pytorch_model.bin                    |         |                                                |
| model.bf16.safetensors, model.non_ema.safetensors       | yes     |                                                |
| model-00001-of-00002.safetensors, ...                   |         | model.safetensors.index.json                   |
| model.bf16-00001-of-00002.safetensors,                  | yes     | model.safetensors.index.bf16.json,             |
| model-00001-of-00002.bf16.safetensors, ...              |         | model.bf16.safetensors.index.json              |

An index maps each tensor's name to its file; without one, the shards' own numbers tell whether all are there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoint.files import StateDict, read_file, unwrapped
from ldm.files import save_tensors
from ldm.util import UserError, listing

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", "fp32", "fp16", "bf16")  # are preferred, in this order; non_ema and others come after them
HEADER_BYTES = 256  # of a tensor in a file, more than its name and shape need
FILE = re.compile(
    r"(?P<stem>[^.]+?)(\.(?P<early>[\w-]+?))?(-(?P<number>\d+)-of-(?P<count>\d+))?(\.(?P<late>\w+))?"
    r"\.(?P<suffix>safetensors|bin)(?P<index>\.index(\.(?P<last>\w+))?\.json)?"
)


@dataclass(frozen=True)
class Weights:
    """One way to read the weights: a file, an index, or a shard that stands for all of its set."""

    path: Path
    stem: str
    variant: str
    suffix: str
    count: int  # of the shards; 0 for a whole file or an index

    @classmethod
    def named(cls, path: Path) -> Weights | None:
        """From the file's name; None if it is not that of weights."""
        if not (match := FILE.fullmatch(path.name)):
            return None
        variant = match["early"] or match["late"] or match["last"] or ""
        return cls(path, match["stem"], variant, match["suffix"], int(match["count"] or 0))

    @property
    def is_index(self) -> bool:
        return self.path.suffix == ".json"

    @property
    def rank(self) -> tuple:
        """Lower is preferred."""
        known = VARIANTS.index(self.variant) if self.variant in VARIANTS else len(VARIANTS)
        return STEMS.index(self.stem), known, self.variant, self.count > 0, self.is_index, self.suffix == "bin"

    def read(self) -> StateDict:
        """Raises UserError: shards are missing or damaged, the index is damaged or names tensors that no shard has."""
        if self.is_index:
            return _read_index(self.path)
        return _read_shards(self) if self.count > 1 else read_file(self.path)


def weights_in(folder: Path) -> Weights | None:
    """The preferred weights in a folder, or None. Raises UserError: the folder cannot be read."""
    try:
        files = [Weights.named(path) for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError as error:
        raise UserError(f"checkpoint {folder} cannot be read ({error.strerror}): check the path") from error
    return min((file for file in files if file and file.stem in STEMS), key=lambda file: file.rank, default=None)


def write_shards(tensors: StateDict, path: Path, limit: int) -> list[Path]:
    """Writes tensors as path's <stem>-00001-of-00003.safetensors, ..., files of at most `limit` bytes -> the files.

    A tensor larger than the limit has a file of its own."""
    parts: list[StateDict] = []
    room = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + HEADER_BYTES
        if size > room:
            parts.append({})
            room = limit - HEADER_BYTES
        parts[-1][name] = tensor
        room -= size
    files = [path.with_name(f"{path.stem}-{i:05}-of-{len(parts):05}.safetensors") for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        save_tensors(part, file)
    return files


def _read_index(path: Path) -> StateDict:
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(places.values()))
        absent = [name for name in names if name != Path(name).name or not (path.parent / name).is_file()]
    except Exception as error:  # damaged JSON can make Python raise anything
        raise UserError(f"checkpoint {path} is no index of shards ({error!r:.80}): download it again") from error
    if absent:
        raise UserError(f"checkpoint {path} names {len(absent)} of {len(names)} shards that are not beside it "
                        f"({absent[0]}): add them")  # fmt: skip
    tensors: StateDict = {}
    for name in names:
        tensors |= read_file(path.parent / name)
    if missing := {unwrapped(name) for name in places} - tensors.keys():
        raise UserError(f"checkpoint {path}: its shards lack {listing(missing)}: download them again")
    return tensors


def _read_shards(one: Weights) -> StateDict:
    """All shards of the set to which one belongs."""
    before, number, after = re.split(r"-(\d+)(?=-of-)", one.path.name, maxsplit=1)
    tensors: StateDict = {}
    for i in range(1, one.count + 1):
        path = one.path.with_name(f"{before}-{i:0{len(number)}d}{after}")
        if not path.is_file():
            raise UserError(f"checkpoint {one.path} lacks {path.name}, one of {one.count} shards: add it")
        tensors |= read_file(path)
    return tensors

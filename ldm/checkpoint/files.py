"""Reads one file of weights, of any format, without running code from it.

Pickled files are read by an unpickler of our own, since torch.load also runs TorchScript programs."""

from __future__ import annotations

import functools
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.util import UserError, listing

StateDict = dict[str, Tensor]


class UnknownObject:
    """Replaces every object of a pickle whose class is not on the unpickler's list: it accepts any call and does
    nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> UnknownObject:
        return self

    def ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = ignore


class _ScriptModule(UnknownObject):
    """Replaces a module of a TorchScript archive. Only its attributes are used: tensors and further modules."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state

    def state_dict(self, prefix: str = "") -> StateDict:
        attributes, self.attributes = self.attributes, {}  # a shared module is visited once
        found = {}
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
            elif isinstance(value, _ScriptModule):
                found |= value.state_dict(f"{prefix}{name}.")
        return found


class Immutable:
    """Base class of the objects that a pickle receives. They have no attributes, and pickle's BUILD instruction, which
    sets attributes, does nothing to them."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _RebuildTensor(Immutable):
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2: a tensor that views a (dtype, storage)."""

    def __call__(self, source: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Any:
        if isinstance(source, UnknownObject):
            return source
        dtype, storage = source
        span = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else 0
        if min(offset, *size, *stride, 0) < 0 or span * dtype.itemsize > storage.nbytes():
            raise ValueError("a tensor reaches beyond its storage")
        return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(size), tuple(stride))


class _RebuildParameter(Immutable):
    """torch._utils._rebuild_parameter: the parameter's tensor."""

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data


class _StorageType(str, Immutable):
    """The name of one of torch's storage classes."""

    __slots__ = ()


STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Unpickler(pickle.Unpickler):
    """Loads tensors and plain containers. Only the names in find_class are resolved; every other name, be it os.system
    or one of Lightning's classes, becomes an UnknownObject. The file can neither import a module nor call a function.

    storage(key, nbytes) returns the bytes behind a tensor."""

    def __init__(self, file: Any, storage: Callable[[str, int], torch.UntypedStorage]):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _RebuildParameter()
        if module in ("torch", "torch.cuda") and name in STORAGE_DTYPES:
            return _StorageType(name)
        if module.split(".")[0] == "__torch__":
            return _ScriptModule
        return UnknownObject

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, numel, *_ = pid  # ("storage", class, key, device, elements)
        if kind not in STORAGE_DTYPES:
            return UnknownObject()
        dtype = STORAGE_DTYPES[kind]
        return dtype, self.storage(str(key), numel * dtype.itemsize)


def _read_zip(path: Path) -> Any:
    """The format of torch.save since 1.6: a zip with data.pkl and one record for each storage. Storages are
    memory-mapped."""
    mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    with open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")

        @functools.cache
        def storage(key: str, nbytes: int) -> torch.UntypedStorage:
            record = archive.getinfo(f"{folder}data/{key}")
            if record.file_size < nbytes:
                raise ValueError("a storage is shorter than declared")
            with archive.open(record) as file:  # checks the record's local header
                if record.compress_type != zipfile.ZIP_STORED:
                    return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).untyped_storage()
            raw.seek(record.header_offset + 26)  # a zip record: 30 bytes, name, extra field, content
            name, extra = struct.unpack("<HH", raw.read(4))
            start = record.header_offset + 30 + name + extra
            return mapped[start : start + record.file_size]

        with archive.open(f"{folder}data.pkl") as file:
            return _Unpickler(file, storage).load()


def _read_legacy(path: Path) -> Any:
    """The format of torch.save before 1.6: pickles of a magic number, a version, system information, the object and the
    keys of its storages, then the length and the bytes of each storage in that order."""
    storages: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, nbytes: int) -> torch.UntypedStorage:
        if nbytes > path.stat().st_size:
            raise ValueError("a storage is longer than the file")
        return storages.setdefault(key, torch.UntypedStorage(nbytes))

    with open(path, "rb") as file:
        *_, content, keys = (_Unpickler(file, storage).load() for _ in range(5))
        if set(map(str, keys)) != set(storages):
            raise ValueError("the storages and the tensors do not match")
        for key in keys:
            file.seek(8, os.SEEK_CUR)  # skips the length, which is known
            data = torch.empty(0, dtype=torch.uint8).set_(storages[str(key)]).numpy()
            if file.readinto(data.data) != data.nbytes:
                raise ValueError("the file ends within a storage")
    return content


NESTS = ("state_dict", "model_state_dict", "model", "module")  # keys under which training loops keep a model's tensors
WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _state_dict(content: Any, depth: int = 4) -> StateDict:
    """Finds the tensors in a Lightning checkpoint, another training loop's, a bare state dict or a TorchScript module.

    depth: of NESTS within one another, as in {"state_dict": {"model": tensors}}."""
    if isinstance(content, _ScriptModule):
        return content.state_dict()
    if not isinstance(content, dict):
        return {}
    for key in NESTS if depth else ():
        if isinstance(content.get(key), dict) and (found := _state_dict(content[key], depth - 1)):
            return found
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that DistributedDataParallel, torch.compile and others add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def read_file(path: Path) -> StateDict:
    """Reads a file's tensors, memory-mapped, under the names in the file, unwrapped.

    Raises UserError: the file is missing, damaged, of another format or without tensors."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}): check the path") from error
    content: Any = None
    try:
        if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
            content = load_file(path)
        elif start[:2] == b"PK":
            content = _read_zip(path)
        elif start[:1] == b"\x80":
            content = _read_legacy(path)
        else:
            raise UserError(f"checkpoint {path} {_describe_other_file(start)}")
        tensors = _state_dict(content)
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged file can make Python raise anything
        raise UserError(f"checkpoint {path} is truncated or damaged ({size} bytes): download it again") from error
    if not tensors:
        raise UserError(f"checkpoint {path} has no tensors{_describe_other_content(content)}")
    plain = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        twice = [name for name, n in Counter(map(unwrapped, tensors)).items() if n > 1]
        raise UserError(f"checkpoint {path} has {listing(twice)} twice, by itself and in a wrapper: remove one of them")
    return plain


def _describe_other_file(start: bytes) -> str:
    """A file of no known format, described by its first bytes, and the cure."""
    if not start:
        return "is empty: download it again"
    if start.lstrip()[:1] == b"<":
        return "is a web page, not a checkpoint: download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer: fetch the file itself with `git lfs pull`"
    return "is neither a .ckpt nor a .safetensors file: use one of these"


def _describe_other_content(content: Any) -> str:
    """A pickle in which no tensors are found, described, and the cure."""
    if isinstance(content, UnknownObject):
        return " but a pickled object, whose code is not run: save its state_dict() instead"
    parts = content.items() if isinstance(content, dict) else ()
    names = [str(key) for key, value in parts if isinstance(value, dict) and _state_dict(value)]
    if names:
        return f" where they are looked for, but under {names[0]!r:.40}: save that part alone"
    return ": use a file of model weights"

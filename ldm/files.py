"""Writing files atomically, and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from ldm.util import UserError


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256, in hexadecimal, of a file, or of all files of a folder with their names. Raises UserError."""
    path, digest = Path(path), hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            if path.is_dir():
                digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with open(file, "rb") as content:
                while block := content.read(2**22):
                    digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return digest.hexdigest()


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`. When the block ends, its files move to `folder` and replace those of the same
    name; when the block fails, they are deleted. Raises UserError if the disk is full or writing is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error
    try:
        yield temporary
        _move(temporary, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two come from torch.save and safetensors
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"writing to {folder} failed ({reason}): free some space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for child in source.iterdir():
        if child.is_file():
            child.chmod(0o666 & ~umask)  # safetensors makes its files readable by their owner alone
        place = target / child.name
        if child.is_dir() and place.is_dir():
            _move(child, place)
        else:
            os.replace(child, place)

"""Walking folders, hashing files and writing them atomically, under names that are short enough."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ldm.storage import Place, Url, is_url, local_or_shipped, upload_files
from ldm.util import UserError

if TYPE_CHECKING:
    from torch import Tensor

NAME_MAX = 255  # bytes in the name of a file
SHORTEN = "shorten the name"


@dataclass
class Walk:
    """The files below a folder, and what is left out of them.

    files: sorted. left_out: reason -> paths, relative to the folder. others: ending -> number of files that have it and
    were not asked for."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def summary(self, kind: str) -> str:
        """What was found and what was left out, in one line. kind: of the files, in the plural."""
        parts = [
            f"{reason} ({len(paths):,}: {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''})"
            for reason, paths in self.left_out.items()
        ]
        if self.others:
            endings = ", ".join(f"{count:,} {ending or 'without one'}" for ending, count in sorted(self.others.items()))
            parts.append(f"files of other endings ({endings})")
        left_out = f"; left out: {', '.join(parts)}" if parts else ""
        return f"{self.folder}: {len(self.files):,} {kind if len(self.files) != 1 else kind[:-1]} found{left_out}"

    def leave_out(self, reason: str, path: str) -> None:
        """Note a path that is not used."""
        name = os.path.relpath(path, self.folder)
        self.left_out.setdefault(reason, []).append(name if name.isprintable() else ascii(name)[1:-1])


def walk(folder: Path, endings: Container[str] | None = None, hidden: bool = False) -> Walk:
    """The files of a folder and its subfolders. Links are followed, except those that lead back to a folder that they
    are in.

    endings: of the files to find, in lower case, with the dot; None: all. hidden: include files and folders whose name
    begins with a dot."""
    found = Walk(folder)
    inside = {os.fspath(folder): [os.path.realpath(folder)]}  # folder -> where it and those above it really are
    unreadable = "folders that cannot be read"
    for place, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: found.leave_out(unreadable, error.filename)
    ):
        above = inside.pop(place)
        for name in sorted(folders):
            path = os.path.join(place, name)
            real = Path(os.path.realpath(path))
            if name.startswith(".") and not hidden:
                found.leave_out("hidden folders", path)
            elif any(Path(each).is_relative_to(real) for each in above):
                found.leave_out("links that lead back to a folder above them", path)
            else:
                inside[path] = [*above, os.fspath(real)]
                continue
            folders.remove(name)
        for name in sorted(names):
            path, ending = os.path.join(place, name), os.path.splitext(name)[1].lower()
            if name.startswith(".") and not hidden:
                found.leave_out("hidden files", path)
            elif endings is not None and ending not in endings:
                found.others[ending] += 1
            elif not os.path.isfile(path):
                found.leave_out("broken links" if os.path.islink(path) else "special files", path)
            else:
                found.files.append(Path(path))
    found.files.sort()
    return found


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256, in hexadecimal, of a file, or of all files of a folder with their names. Raises UserError."""
    digest = hashlib.sha256()
    try:
        path = local_or_shipped(path)
        files = walk(path, hidden=True).files if path.is_dir() else [path]
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
def staging(folder: Place) -> Iterator[Path]:
    """A temporary folder inside `folder`. When the block ends, its files move to `folder` and replace those of the same
    name; when the block fails, they are deleted. For a folder in storage the temporary one is on this machine, and its
    files are written one after the other.

    Raises UserError if the disk is full or writing is not allowed."""
    try:
        if isinstance(folder, Url):
            temporary = Path(tempfile.mkdtemp())
        else:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        cure = SHORTEN if error.errno == errno.ENAMETOOLONG else "choose another folder"
        raise UserError(f"{folder} cannot be written to ({error.strerror}): {cure}") from error
    try:
        yield temporary
        upload_files(temporary, folder) if isinstance(folder, Url) else _move(temporary, folder)
    except OSError as error:
        if error.errno is None:  # a library's own, about what is to be written
            raise
        cure = SHORTEN if error.errno == errno.ENAMETOOLONG else "free some space or choose another folder"
        raise UserError(f"writing to {folder} failed ({error.strerror}): {cure}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A temporary file that replaces `path` when the block ends, and is deleted when the block fails."""
    folder = Path(tempfile.gettempdir()) if isinstance(path, Url) else path.parent
    temporary = folder / f".partial-{secrets.token_hex(4)}"
    try:
        yield temporary
        path.upload(temporary) if isinstance(path, Url) else os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a .safetensors file. Tensors that share memory are written each by itself. Raises OSError."""
    from safetensors.torch import save_file

    copies, end = {}, 0
    for name, tensor in sorted(((n, t.contiguous()) for n, t in tensors.items()), key=lambda item: item[1].data_ptr()):
        shared = tensor.data_ptr() < end  # with the one before it in memory
        end = max(end, tensor.data_ptr() + tensor.nbytes)
        copies[name] = tensor.clone() if shared else tensor
    try:
        save_file({name: copies[name] for name in tensors}, path, metadata)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


def save_pickled(content: Any, path: Path) -> None:
    """Writes what torch.save does, to the disk itself. Raises OSError."""
    import torch

    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save raises another error over the disk's
            raise error.__context__ from None
        raise


def check_name(path: str | os.PathLike, what: str) -> None:
    """Raises UserError if a file or folder in the path has a longer name than file systems take. Called before the
    work; what: the flag or the column that gave the path."""
    for part in os.fspath(path).split("/") if is_url(path) else Path(path).parts:
        if (length := len(os.fsencode(part))) > NAME_MAX:
            raise UserError(f"{what} {part:.40}... has a name of {length} bytes, more than the {NAME_MAX} that file "
                            f"systems take: {SHORTEN}")  # fmt: skip


def short_stem(stem: str, room: int) -> str:
    """A name to which `room` more bytes can be added: where it is too long, its beginning and a digest of it all."""
    raw = os.fsencode(stem)
    if len(raw) + room <= NAME_MAX:
        return stem
    digest = hashlib.sha256(raw).hexdigest()[:8]
    return f"{raw[: NAME_MAX - room - len(digest) - 1].decode(errors='ignore')}-{digest}"


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

"""Files in object storage, by the URLs that fsspec opens: s3://, gs://, hf://, https://, memory://.

    place(text) -> Path | Url     a Url stands where a Path stands for a local file
    local(path) -> Path           a copy on this disk of what a URL names, for what needs a real file

A file is read whole and written whole. Each file appears at once or not at all, since stores show an object when it is
complete. Several files are written one after the other: an interruption leaves the earlier ones in their new state."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias, TypeVar

from ldm.util import UserError, own_or_shipped, require

Result = TypeVar("Result")

CACHE = Path("~/.cache/paint-by-example/fetched")  # PAINT_BY_EXAMPLE_CACHE names another
ATTEMPTS, FIRST_WAIT = 5, 0.5  # seconds; each wait is twice the one before, and up to half of it longer by chance
READ_ONLY = ("http", "https")
STATE = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "generation", "blob_id")  # of a file
LASTING = (PermissionError, NotImplementedError, ValueError, TypeError)  # errors that no repetition mends
SCHEME = re.compile(r"(?!file:)([a-z][a-z0-9+.-]+)://")  # two letters or more: C:// is a disk


class StorageError(UserError):
    """The store does not answer or refuses, as opposed to a file that is missing or damaged."""


@dataclass(frozen=True, order=True)
class Url(os.PathLike):
    """A file or folder in storage, with those of Path's names that are needed. A missing file raises FileNotFoundError;
    everything else StorageError."""

    text: str

    def __fspath__(self) -> str:
        return self.text

    __str__ = __fspath__

    def __truediv__(self, name: str | os.PathLike) -> Place:
        name = os.fspath(name)
        if is_url(name) or os.path.isabs(name):
            return place(name)
        return self._with(PurePosixPath(posixpath.normpath(self._path / name)))

    @property
    def scheme(self) -> str:
        return self.text.partition("://")[0]

    @property
    def _path(self) -> PurePosixPath:
        path = self.text.partition("://")[2]
        return PurePosixPath(path.partition("?")[0].partition("#")[0] if self.scheme in READ_ONLY else path)

    def _with(self, path: PurePosixPath) -> Url:
        return Url(f"{self.scheme}://{path}")

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def parent(self) -> Url:
        return self._with(self._path.parent)

    def with_name(self, name: str) -> Url:
        return self._with(self._path.with_name(name))

    def with_suffix(self, suffix: str) -> Url:
        return self._with(self._path.with_suffix(suffix))

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return _repeat(self.text, "read", lambda fs, path: fs.info(path))["type"]
        except FileNotFoundError:
            return None

    def files(self) -> list[Url]:
        """Those of this folder, sorted, without its subfolders; none if there is no such folder."""

        def found(fs: Any, path: str) -> list[Url]:
            fs.invalidate_cache()
            names = [each["name"] for each in fs.ls(path, detail=True) if each["type"] == "file"]
            return sorted(self._with(self._path / PurePosixPath(name).name) for name in names)

        try:
            return _repeat(self.text, "read", found)
        except FileNotFoundError:
            return []

    def read_bytes(self, limit: int | None = None, start: int = 0) -> bytes:
        """limit: read only so many bytes, from the start-th on."""
        part = {} if limit is None else {"start": start, "end": start + limit}
        return _repeat(self.text, "read", lambda fs, path: fs.cat_file(path, **part))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        self.check_writable()
        _repeat(self.text, "written", lambda fs, path: fs.pipe_file(path, data))

    def check_writable(self) -> None:
        """Raises UserError for a scheme that only reads."""
        if self.scheme in READ_ONLY:
            raise UserError(f"{self} cannot be written, as {self.scheme}:// only reads: name another place")

    def upload(self, file: Path) -> None:
        """Write the content of a local file of any size."""
        self.check_writable()
        _repeat(self.text, "written", lambda fs, path: fs.put_file(os.fspath(file), path))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _repeat(self.text, "removed", lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Place) -> None:
        """Copy, then remove: an interruption may leave both."""
        target.write_bytes(self.read_bytes())
        self.unlink()

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: in storage a folder is the beginning that names have in common."""


Place: TypeAlias = Path | Url


def is_url(path: object) -> bool:
    """Whether this names something in storage."""
    return isinstance(path, Url) or (isinstance(path, str) and SCHEME.match(path) is not None)


def place(path: str | os.PathLike) -> Place:
    """A local path or a URL -> what reads and writes it."""
    if isinstance(path, Url):
        return path
    return Url(path) if isinstance(path, str) and is_url(path) else Path(path)


def local_or_shipped(path: str | os.PathLike) -> Path:
    """`local`, or the file that comes with the project under this name if the working folder has none. Raises UserError
    as `local` does."""
    return local(path) if is_url(path) else own_or_shipped(path)


def local(path: str | os.PathLike) -> Path:
    """The path itself, or a copy of the file or folder that a URL names, in CACHE under the same name. A copy is made
    once for each state of the original (size, date, checksum, as far as the store says).

    Raises UserError: missing, or as StorageError."""
    if not is_url(path):
        return Path(path)
    url = Url(os.fspath(path))

    def states(fs: Any, path: str) -> dict[str, dict]:
        """Name relative to the URL ("" for a file) -> what the store says of the file."""
        fs.invalidate_cache()
        info = fs.info(path)
        if info["type"] != "directory":
            return {"": info}
        found = fs.find(path, detail=True)
        return {os.path.relpath(name, fs._strip_protocol(path)): found[name] for name in sorted(found)}

    try:
        files = _repeat(url.text, "read", states)
    except FileNotFoundError as error:
        raise UserError(f"{url} does not exist: check the path") from error
    kept = {name: [str(info.get(key)) for key in STATE] for name, info in files.items()}
    digest = hashlib.sha256(f"{url}{sorted(kept.items())}".encode()).hexdigest()[:20]
    folder = Path(os.environ.get("PAINT_BY_EXAMPLE_CACHE", CACHE)).expanduser() / digest
    if (folder / url.name).exists():
        return folder / url.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written to ({error.strerror}): set PAINT_BY_EXAMPLE_CACHE to another folder"
        ) from error
    try:
        for name in files:
            target = temporary / url.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _download(url._with(url._path / name) if name else url, target)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / url.name


def _download(url: Url, target: Path) -> None:
    _repeat(url.text, "read", lambda fs, path: fs.get_file(path, os.fspath(target)))


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file open for reading; one in storage is first copied to a temporary file. Raises OSError, StorageError."""
    with contextlib.ExitStack() as stack:
        if is_url(path):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _download(Url(os.fspath(path)), folder / "file")
            path = folder / "file"
        yield stack.enter_context(open(path, "rb"))


def read_part(path: Place, start: int, size: int) -> bytes:
    """`size` bytes of a file, from the start-th on. Raises OSError, StorageError."""
    if isinstance(path, Url):
        return path.read_bytes(size, start)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def upload_files(source: Path, target: Url) -> None:
    """The files of a local folder and its subfolders, one after the other, each under its name in the target."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        url = target / file.relative_to(source).as_posix()
        assert isinstance(url, Url)
        url.upload(file)


def _repeat(url: str, done: str, work: Callable[[Any, str], Result]) -> Result:
    """work(file system, path in it), again after a while if it fails by an error that may pass.

    done: what is to be done with the URL, for errors. Raises FileNotFoundError, StorageError."""
    import fsspec

    options: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        try:
            if url.startswith(READ_ONLY):
                options = {"client_kwargs": {"timeout": _patience()}}
            return work(*fsspec.core.url_to_fs(url, **options))
        except FileNotFoundError as error:
            if done == "written":
                raise StorageError(f"{url} cannot be written (its bucket is missing): check its name") from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
        except ImportError as error:
            raise StorageError(
                f"{url.partition('://')[0]}:// needs a driver ({error}): pip install 'paint-by-example[storage]'"
            ) from error
        except UserError:
            raise
        except Exception as error:  # each driver has its own kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            if _lasts(error):
                raise StorageError(f"{url} cannot be {done} ({reason}): check its name and your rights") from error
            if attempt + 1 == ATTEMPTS:
                raise StorageError(
                    f"{url} cannot be {done} after {ATTEMPTS} attempts ({reason}): check the connection, then run it "
                    "again"
                ) from error
        # the generators of `random` belong to training
        time.sleep(FIRST_WAIT * 2**attempt * random.SystemRandom().uniform(1, 1.5))
    raise AssertionError


def _lasts(error: Exception) -> bool:
    """Whether an attempt at another time would fail alike."""
    status = getattr(error, "status", 0)  # of HTTP
    return isinstance(error, LASTING) or (400 <= status < 500 and status not in (408, 425, 429))


def _patience() -> Any:
    """aiohttp's own limit is five minutes for a whole file, however large."""
    return require("aiohttp", "storage").ClientTimeout(total=None, sock_connect=30, sock_read=60)

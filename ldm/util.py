"""Configs to objects, files that are whole or absent, and how a script ends when its user made a mistake."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

Item = TypeVar("Item")


class UserError(Exception):
    """A mistake that the user can mend: one sentence that names the thing and the cure."""


def get_obj_from_str(target: str) -> Any:
    """`package.module.Name` -> the object; a hyphen in a module's name is read as an underscore."""
    try:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module.replace("-", "_")), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"config: target {target!r} cannot be found ({error}); correct its name") from error


def instantiate_from_config(config: Any, kind: type = object) -> Any:
    """Call the class `config.target` with `config.params`.

    kind: what the class has to be; a config builds objects, it does not call functions. Raises UserError when there is
    no such class, or it cannot be built with these parameters."""
    try:
        target, params = config["target"], dict(config.get("params") or {})
    except Exception as error:  # also OmegaConf's, for interpolations that lead nowhere
        raise UserError(f"config: {config!r:.60} has no 'target' and 'params'; name the class to build") from error
    cls = get_obj_from_str(target)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise UserError(f"config: target {target!r} is no {kind.__name__}; correct its name")
    try:
        return cls(**params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config: {target} cannot be built ({error!r}); correct its params") from error


def load_config(config: str | os.PathLike | DictConfig | dict) -> DictConfig:
    """A YAML file, or a config already read, as an OmegaConf node with a `model` in it."""
    if isinstance(config, (str, os.PathLike)):
        path = Path(config)
        try:
            config = OmegaConf.load(path)
        except OSError as error:
            raise UserError(f"config {path}: cannot be read ({error.strerror}); name a YAML file") from error
        except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"config {path}: not a valid YAML file ({' '.join(str(error).split())})") from error
    else:
        path = "given"
        config = OmegaConf.create(config) if isinstance(config, dict) else config
    try:
        fits = isinstance(config["model"], DictConfig)
    except (OmegaConfBaseException, TypeError):
        fits = False
    if not fits:
        raise UserError(f"config {path}: has no 'model'; give one such as configs/v1.yaml")
    return config


def listing(names: Iterable[str], most: int = 3) -> str:
    """How many names of tensors, and the first few of them: "5 tensors (a, b, c, ...)"."""
    names = sorted(names)
    word = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {word} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def sha256_of(path: str | os.PathLike) -> str:
    """Of a file, or of all files of a folder with their names; hexadecimal. Raises UserError."""
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
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches_alike(items: Iterable[Item], size: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Lists of up to `size` items of one key: each as soon as it is full, at the end those that are not."""
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        same = waiting.setdefault(key(item), [])
        same.append(item)
        if len(same) == size:
            yield waiting.pop(key(item))
    yield from waiting.values()


def keep_memory() -> None:
    """Memory that is freed stays with this process for what is allocated next, instead of going back to the system and
    coming again, page by page, in every step. For a process that runs one thing to its end."""
    _mallopt(M_MMAP_MAX=(-4, 0), M_TRIM_THRESHOLD=(-1, -1))


def share_memory() -> None:
    """All threads share one pool of memory. Else each keeps what it frees for itself: with pictures in dozens of them,
    gigabytes. For a server."""
    _mallopt(M_ARENA_MAX=(-8, 1))


def _mallopt(**options: tuple[int, int]) -> None:
    """name = (its number in malloc.h, value), for glibc; with other C libraries nothing changes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in options.values():
            mallopt(number, value)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates a script's main: a UserError becomes one line on stderr and exit code 2; Ctrl-C and SIGTERM end it with
    130 and 143 and leave nothing half-written."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleaning up that a kill would not
        try:
            main(*args, **kwargs)
        except (UserError, MemoryError) as error:
            words = (
                "the memory is full; ask for fewer or smaller pictures"
                if isinstance(error, MemoryError)
                else str(error)
            )
            print(f"{Path(sys.argv[0]).name}: error: {' '.join(words.split())}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # whoever read the output, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`. When the block ends, what was put there moves to `folder`, replacing files of
    the same name; when it fails, nothing does. Raises UserError where the disk is full or writing is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); name another folder") from error
    try:
        yield temporary
        _move(temporary, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save and safetensors raise the latter two
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise UserError(f"{folder}: writing failed ({reason}); free some space or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for child in source.iterdir():
        if child.is_file():
            child.chmod(0o666 & ~umask)  # safetensors makes its files readable by nobody else
        place = target / child.name
        if child.is_dir() and place.is_dir():
            _move(child, place)
        else:
            os.replace(child, place)

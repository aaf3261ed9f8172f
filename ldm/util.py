"""Configs to objects, files that come with the project, and errors that a user can correct."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Item = TypeVar("Item")

MOST_WAITING = 4  # batches' worth of items that group_into_batches keeps
PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "shipped").is_dir()  # else this is a checkout, or an editable install of one
EXTRAS = {  # of the package: what each is needed for
    "train": "training",
    "eval": "evaluation",
    "web": "the web page",
    "storage": "reading from storage",
    "docs": "building the documentation",
}
ALIASES = {  # targets of published configs -> where these classes are; an installed package has no main.py
    "main.DataModuleFromConfig": "ldm.data.datamodule.DataModuleFromConfig",
}


class UserError(Exception):
    """A mistake that the user can correct: one sentence that names what is wrong with which thing, and the cure."""


class UserNote(UserWarning):
    """Something about the input that its owner should know, in one sentence; the work goes on."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module that only one of EXTRAS installs. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:  # it is installed, and one of its own imports is missing
            raise
        raise UserError(f"{EXTRAS[extra]} needs {error.name}: pip install 'paint-by-example[{extra}]'") from error


def shipped(name: str | os.PathLike) -> Path:
    """A file that comes with the project, such as `configs/v1.yaml`: in a checkout it is at the top level, in an
    installed package in ldm/shipped."""
    return (PACKAGE / "shipped" if INSTALLED else PACKAGE.parent) / name


def own_or_shipped(path: str | os.PathLike) -> Path:
    """The path itself, or the file that comes with the project under this name if the working folder has none."""
    return Path(path) if os.path.exists(path) or not os.path.exists(shipped(path)) else shipped(path)


def get_obj_from_str(target: str) -> Any:
    """`package.module.Name` -> the object; a hyphen in a module's name is read as an underscore."""
    try:
        module, _, name = ALIASES.get(target, target).rpartition(".")
        return getattr(importlib.import_module(module.replace("-", "_")), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"config: target {target!r} cannot be found ({error}): correct its name") from error


def instantiate_from_config(config: Any, kind: type = object) -> Any:
    """Call the class `config.target` with `config.params`.

    kind: the class that it must be or derive from; a config builds objects and does not call functions. Raises
    UserError if the class is missing or cannot be built with these parameters."""
    try:
        target, params = config["target"], dict(config.get("params") or {})
    except Exception as error:  # also OmegaConf's, for broken interpolations
        raise UserError(f"config: {config!r:.60} has no 'target' and 'params': name the class to build") from error
    cls = get_obj_from_str(target)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise UserError(f"config: target {target!r} is not a {kind.__name__}: correct its name")
    for name, kind in parameter_kinds(cls).items():
        if isinstance(value := params.get(name), (bool, int, float)) and is_text(kind):
            raise UserError(f"config: {target}'s {name} is {value!r}, which is not text: put it in quotes")
    try:
        return cls(**params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config: {target} cannot be built ({error!r}): correct its params") from error


def parameter_kinds(cls: Any) -> dict[str, Any]:
    """The annotations of a class's parameters, by name; empty if they cannot be found out."""
    try:
        return get_type_hints(cls.__init__)
    except (NameError, TypeError, AttributeError):
        return {}


def is_text(kind: Any) -> bool:
    """Whether an annotation admits text or a path, or null, and nothing else."""
    members = set(get_args(kind)) if isinstance(kind, UnionType) or get_origin(kind) is Union else {kind}
    return members <= {str, Path, os.PathLike, type(None)} and members != {type(None)}


def read_yaml(path: str | os.PathLike) -> Any:
    """A YAML file, or one of the project's own configs by its path, as an OmegaConf node.

    Raises UserError: unreadable, not YAML."""
    path = own_or_shipped(path)
    try:
        return OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"config {path} cannot be read ({error.strerror}): give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"config {path} is not valid YAML ({' '.join(str(error).split())}): correct it") from error


def load_config(config: str | os.PathLike | DictConfig | dict) -> DictConfig:
    """A config by its path (see read_yaml), or one that was read already -> an OmegaConf node with a `model`.

    Raises UserError as read_yaml does, and if there is no `model`."""
    if isinstance(config, (str, os.PathLike)):
        name, node = f"config {own_or_shipped(config)}", read_yaml(config)
    else:
        name, node = "the config", OmegaConf.create(config) if isinstance(config, dict) else config
    try:
        fits = isinstance(node["model"], DictConfig)
    except (OmegaConfBaseException, TypeError):
        fits = False
    if not fits:
        raise UserError(f"{name} has no 'model': give one such as configs/v1.yaml")
    return node


def listing(names: Iterable[str], shown: int = 3) -> str:
    """The number of tensors and the first few of their names: "5 tensors (a, b, c, ...)"."""
    names = sorted(names)
    word = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {word} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def group_into_batches(items: Iterable[Item], size: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Lists of up to `size` items with equal keys: each as soon as it is full, the incomplete ones at the end, or, so
    that not all items are kept, the oldest as soon as MOST_WAITING times as many items wait."""
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        same = waiting.setdefault(key(item), [])
        same.append(item)
        if len(same) == size:
            yield waiting.pop(key(item))
        elif sum(map(len, waiting.values())) == MOST_WAITING * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()

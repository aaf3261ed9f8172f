"""What is typed as key=value, or after a flag -> the value.

The kind of value that a key takes decides what the words mean. Where it takes text, `off`, `0012`, `1e3` and
`photos #2` stay what they are; YAML would read a truth value, ten, a thousand and `photos`. The kind is the annotation
of the parameter that the key sets, else the kind of the value in the config. Keys of unknown kind take numbers, true,
false, null, [lists] and {mappings}; all else is text."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm.util import UserError, get_obj_from_str, parameter_kinds

WHOLE = re.compile(r"[-+]?\d(_?\d)*")
DECIMAL = re.compile(r"[-+]?(\d(_?\d)*\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?\.?inf|\.?nan", re.IGNORECASE)
JSON_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?(e[-+]?\d+)?|[-+]?\.\d+(e[-+]?\d+)?", re.IGNORECASE)
TRUTH = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
NULL = ("null", "~")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", list: "a [list]", dict: "a {mapping}"}
WORDS |= {str: "text", type(None): "null"}
UNKNOWN = Any


def read_value(text: str, kind: Any, name: str) -> Any:
    """text: as typed; kind: an annotation; name: of the key or flag with its value, for the message. Raises UserError:
    the text is no value of this kind."""
    kinds, choices = _plain_kinds(kind)
    if kinds and kinds <= {str, type(None)} and not choices:
        return text
    for choice in choices:
        if text == str(choice):
            return choice
    if type(None) in kinds and text in NULL:
        return None
    if int in kinds and WHOLE.fullmatch(text):
        return int(text)
    if int in kinds and float not in kinds and DECIMAL.fullmatch(text) and _decimal(text).is_integer():
        return int(_decimal(text))
    if float in kinds and (WHOLE.fullmatch(text) or DECIMAL.fullmatch(text)):
        return int(text) if WHOLE.fullmatch(text) else _decimal(text)
    if bool in kinds and text.lower() in TRUTH:
        return TRUTH[text.lower()]
    if not kinds and not choices:
        return _container(text, name) if text[:1] in ("[", "{") else _plain(text)
    for wanted, start in ((list, "["), (dict, "{")):
        if wanted in kinds and text.startswith(start):
            return _container(text, name)
    if str in kinds or choices:  # the receiver knows its own words
        return text
    wanted = [WORDS[each] for each in WORDS if each in kinds and not (each is int and float in kinds)]
    raise UserError(f"{name} is not {' or '.join(wanted)}: correct it")


def kind_at(config: DictConfig, key: str) -> Any:
    """The kind of value that a key takes: an annotation, or UNKNOWN. Raises UserError: the key's target is missing."""
    owner, _, name = key.rpartition(".")
    if owner == "lightning.trainer":
        return trainer_kinds().get(name, UNKNOWN)
    section, _, last = owner.rpartition(".")
    target = OmegaConf.select(config, f"{section}.target") if last == "params" else None
    if isinstance(target, str):
        kind = parameter_kinds(get_obj_from_str(target)).get(name, UNKNOWN)
        if any(_plain_kinds(kind)):
            return kind
    value = OmegaConf.select(config, key)
    for like, kind in ((str, str), (bool, bool | None), ((int, float), float | None)):
        if isinstance(value, like):
            return kind
    return {ListConfig: list | None, DictConfig: dict | None}.get(type(value), UNKNOWN)


def trainer_kinds() -> dict[str, Any]:
    """The kinds of all parameters of Lightning's Trainer, and of the published configs' `gpus`."""
    import pytorch_lightning as lightning

    return {**parameter_kinds(lightning.Trainer), "gpus": int | str | None}


def override(config: DictConfig, word: str) -> None:
    """Sets a value in the config as key=value says. Raises UserError: no value, or none that the key takes."""
    key, _, text = word.partition("=")
    if not text:
        raise UserError(f"{word} has no value: write it after the =")
    parent = key.rpartition(".")[0]
    while parent and OmegaConf.select(config, parent) is None:
        parent = parent.rpartition(".")[0]
    if parent and not OmegaConf.is_config(OmegaConf.select(config, parent)):
        raise UserError(f"{word}: {parent} is a value, not a section: correct the key")
    OmegaConf.update(config, key, read_value(text, kind_at(config, key), word), merge=True)


def _plain_kinds(kind: Any) -> tuple[set[type], list[Any]]:
    """An annotation's members among str, int, float, bool, list, dict and None, and the choices of its Literals."""
    if kind in (None, type(None)):
        return {type(None)}, []
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        parts = [_plain_kinds(member) for member in get_args(kind)]
        return set().union(*(kinds for kinds, _ in parts)), [choice for _, choices in parts for choice in choices]
    if origin is Literal:
        return set(), list(get_args(kind))
    cls = origin or kind
    if not isinstance(cls, type) or cls is object:
        return set(), []
    if cls in (bool, int, float):
        return {cls}, []
    if issubclass(cls, (str, Path)):
        return {str}, []
    if issubclass(cls, Mapping):
        return {dict}, []
    return (
        ({list}, []) if issubclass(cls, Iterable) and cls.__module__ in ("builtins", "collections.abc") else (set(), [])
    )


def _decimal(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _plain(text: str) -> Any:
    """A word whose kind is unknown."""
    if text in NULL:
        return None
    if text in ("true", "false"):
        return text == "true"
    if JSON_NUMBER.fullmatch(text):
        return int(text) if WHOLE.fullmatch(text) else float(text)
    return text


def _container(text: str, name: str) -> Any:
    """A [list] or {mapping} in YAML's words, whose members are of unknown kind unless they are quoted."""

    def value(node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {value(key): value(child) for key, child in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [value(child) for child in node.value]
        return node.value if node.style else _plain(node.value)

    try:
        return value(yaml.compose(text, yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise UserError(
            f"{name} is not a [list] or a {{mapping}} ({' '.join(str(error).split())}): correct it"
        ) from error

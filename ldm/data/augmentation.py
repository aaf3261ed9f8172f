"""The reference's augmentation as an albumentations pipeline: the published recipe, or any other that a file describes.

`ldm.data.reference.load_augmentation` imports this module where training draws samples; nothing else needs
albumentations."""

from __future__ import annotations

import copy
import json
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from ldm.data import reference
from ldm.util import UserError, require

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise, importing it looks for a newer version on the network
require("albumentations", "train")

import albumentations as A  # noqa: E402
from pydantic import Field, PositiveInt, ValidationError  # noqa: E402

Pipeline = A.BaseCompose | A.BasicTransform

CURE = "write it with albumentations.save(pipeline, path, data_format='yaml'), like configs/augmentation/published.yaml"


class PublishedRotate(A.ImageOnlyTransform):
    """Rotation by an angle from [-limit, limit], in degrees, about the point (width / 2, height / 2).

    A.Rotate turns about ((width - 1) / 2, (height - 1) / 2) instead."""

    class InitSchema(A.BasicTransform.InitSchema):
        limit: float = Field(ge=0, le=180)

    def __init__(self, limit: float = reference.ANGLE, p: float = 0.5):
        super().__init__(p=p)
        self.limit = limit

    def get_params(self) -> dict[str, Any]:
        return {"angle": self.random_generator.uniform(-self.limit, self.limit)}

    def apply(self, img: np.ndarray, angle: float, **params: Any) -> np.ndarray:
        return reference.rotate(img, angle)


class PublishedBlur(A.ImageOnlyTransform):
    """The mean over a square whose side is one of `sizes`, in pixels, all equally likely."""

    class InitSchema(A.BasicTransform.InitSchema):
        sizes: tuple[PositiveInt, ...] = Field(min_length=1)

    def __init__(self, sizes: Sequence[int] = reference.BLUR_SIZES, p: float = 0.5):
        super().__init__(p=p)
        self.sizes = sizes

    def get_params(self) -> dict[str, Any]:
        return {"size": int(self.random_generator.choice(self.sizes))}

    def apply(self, img: np.ndarray, size: int, **params: Any) -> np.ndarray:
        return cv2.blur(img, (size, size))


class PublishedElastic(A.ImageOnlyTransform):
    """The published ElasticTransform: in effect a random affine map, which moves three anchor points by up to `shift`
    pixels in x and in y. A.ElasticTransform bends the picture instead."""

    class InitSchema(A.BasicTransform.InitSchema):
        shift: float = Field(ge=0)

    def __init__(self, shift: float = reference.ANCHOR_SHIFT, p: float = 0.5):
        super().__init__(p=p)
        self.shift = shift

    def get_params(self) -> dict[str, Any]:
        return {"shifts": self.random_generator.uniform(-self.shift, self.shift, (3, 2))}

    def apply(self, img: np.ndarray, shifts: np.ndarray, **params: Any) -> np.ndarray:
        return reference.random_affine(img, shifts)


class DrawThenApply(A.BaseCompose):
    """Transforms one after the other, like A.Compose, but all random numbers are drawn before any transform is applied:
    first which transforms to apply, then the parameters of every transform, applied or not.

    So each draw has a fixed place in the sample's random stream. transforms: single ones, no compositions. Parameters
    that depend on the picture are computed from the input picture, before any transform."""

    def __init__(self, transforms: Sequence[A.BasicTransform], p: float = 1.0):
        if not all(isinstance(transform, A.BasicTransform) for transform in transforms):
            raise ValueError("DrawThenApply takes single transforms, not compositions")
        super().__init__(list(transforms), p=p)

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        if not force_apply and self.p < 1 and self.random_generator.random() >= self.p:
            return data
        applied = self.random_generator.random(len(self.transforms)) < [t.p for t in self.transforms]
        drawn = []
        for transform in self.transforms:
            params = transform.update_transform_params(transform.get_params(), data)
            drawn.append(params | transform.get_params_dependent_on_data(params, data))
        for transform, params, apply in zip(self.transforms, drawn, applied, strict=True):
            if apply:
                data = transform.apply_with_params(params, **data)
        return data


class SharedRandom(random.Random):
    """Python's random numbers, drawn from a NumPy generator: albumentations uses both kinds, a sample has one stream.

    Make a new one for each sample, because gauss() keeps a number for its next call."""

    def __init__(self, generator: np.random.Generator):
        self.generator = generator
        super().__init__()

    def seed(self, *args: Any, **kwargs: Any) -> None:
        pass

    def random(self) -> float:
        return self.generator.random()

    def getrandbits(self, k: int) -> int:
        return int.from_bytes(self.generator.bytes(-(-k // 8)), "little") >> -k % 8

    def __reduce__(self) -> tuple[type, tuple[np.random.Generator]]:
        return type(self), (self.generator,)


@dataclass(frozen=True)
class Augmentation:
    """`augmentation(picture, rng)`: (224,224,3) uint8 -> the same shape and type; rng gives all random numbers."""

    pipeline: Pipeline

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.pipeline.set_random_state(rng, SharedRandom(rng))
        changed = self.pipeline(image=picture)["image"]
        if tuple(changed.shape) != picture.shape or changed.dtype != picture.dtype:
            raise ValueError(
                f"it turns {picture.shape} {picture.dtype} into {tuple(changed.shape)} {changed.dtype} and has to keep "
                "both"
            )
        return changed


def published_pipeline() -> DrawThenApply:
    """The recipe of Yang et al. 2022, section 3.3."""
    return DrawThenApply(
        [
            A.HorizontalFlip(p=reference.P_FLIP),
            PublishedRotate(limit=reference.ANGLE, p=reference.P_ROTATE),
            PublishedBlur(sizes=reference.BLUR_SIZES, p=reference.P_BLUR),
            PublishedElastic(shift=reference.ANCHOR_SHIFT, p=reference.P_AFFINE),
        ]
    )


def load_pipeline(path: Path) -> Pipeline:
    """A pipeline that albumentations.save wrote as YAML, or as JSON if the file ends in .json; tried out on a picture.

    Transforms are looked up by name among those that albumentations and this module define; no code of the file runs.
    Raises UserError: a missing file, one that is not YAML or JSON, an unknown transform or parameter, a bad value, a
    pipeline that changes the picture's size or type."""
    try:
        text = path.read_text(encoding="utf-8")
        described = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"reference_augmentation {path} cannot be read ({error.strerror}): give the path of an existing file"
        ) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"reference_augmentation {path} is not {kind} ({_one_line(error)}): {CURE}") from error
    if not isinstance(described, Mapping) or not isinstance(described.get("transform"), Mapping):
        raise UserError(f"reference_augmentation {path} has no entry 'transform': {CURE}")
    try:
        pipeline = _build(described)
        _try_out(pipeline)
    except Exception as error:  # albumentations and its transforms raise errors of many types
        raise UserError(f"reference_augmentation {path} cannot be used ({_one_line(error)}): correct it") from error
    return pipeline


def _build(described: Mapping[str, Any]) -> Pipeline:
    _require_complete(described["transform"])
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"Argument\(s\)"
        )  # about unknown parameters, which are an error below
        try:
            pipeline = A.from_dict(dict(described), nonserializable={})
        except KeyError as error:
            raise ValueError(f"albumentations has no transform {error}") from error
    if not isinstance(pipeline, Pipeline):
        raise ValueError(f"{type(pipeline).__name__} is not a transform")
    _require_known_parameters(pipeline, described["transform"])
    return pipeline


def _require_complete(described: Any) -> None:
    """Raises ValueError for an entry without a name, one without a probability (albumentations would assume 0.5), and
    one that holds code."""
    if not isinstance(described, Mapping) or "__class_fullname__" not in described:
        raise ValueError("an entry names no transform (__class_fullname__)")
    name = str(described["__class_fullname__"])
    if name.endswith("Lambda"):
        raise ValueError("a Lambda holds code, which is never loaded from a file")
    if "p" not in described and name not in ("Compose", "Sequential"):
        raise ValueError(f"{name} has no probability p")
    for child in described.get("transforms", ()):
        _require_complete(child)


def _require_known_parameters(transform: Pipeline, described: Mapping[str, Any]) -> None:
    """Raises ValueError for a parameter that the transform does not have; albumentations would ignore it."""
    if isinstance(transform, A.BaseCompose):
        for child, description in zip(transform.transforms, described["transforms"], strict=True):
            _require_known_parameters(child, description)
        return
    # these names include the parameters of base classes, which albumentations.save writes too
    unknown = set(described) - {"__class_fullname__", "p", *transform.get_transform_init_args_names()}
    if unknown:
        raise ValueError(f"{type(transform).__name__} has no parameter {', '.join(sorted(unknown))}")


def _try_out(pipeline: Pipeline) -> None:
    """Raises what the pipeline raises on a picture, or ValueError if it changes the picture's shape or type."""
    always = copy.deepcopy(pipeline)
    for part in _parts(always):
        part.p = 1.0
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (reference.SIZE, reference.SIZE, 3), dtype=np.uint8)
    for variant, times in ((always, 4), (pipeline, 16)):
        for _ in range(times):
            Augmentation(variant)(picture.copy(), rng)


def _parts(transform: Pipeline) -> Iterator[Pipeline]:
    yield transform
    if isinstance(transform, A.BaseCompose):
        for child in transform.transforms:
            yield from _parts(child)


def _one_line(error: Exception) -> str:
    if isinstance(error.__cause__, ValidationError):
        return ", ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.__cause__.errors())
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

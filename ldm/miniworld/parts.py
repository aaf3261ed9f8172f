"""Scores of the miniature model's parts by themselves: its autoencoder, its CLIP, and the oracle and recogniser
that judge its edits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.files import read_file
from ldm.conventions import image_to_tensor, reference_to_tensor
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.data.masks import REFERENCE_PADDING
from ldm.evaluation.clip_score import bounding_box
from ldm.evaluation.features import Extractor
from ldm.miniworld.captions import caption_tokens, pattern_caption, shape_caption
from ldm.miniworld.crops import ATTRIBUTES, Labels, bench_labels
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.scores import LookalikeScorer, identity_scores
from ldm.miniworld.shapes import SHAPES
from ldm.miniworld.worlds import Individuals
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.encoders.clip import build_clip
from ldm.util import UserError


def read_clip(config: Path, file: Path) -> nn.Module:
    """open_clip's CLIP of a config, with its weights. Raises UserError: weights of another config, a damaged file."""
    clip = build_clip(config)
    tensors = {name: tensor.float() for name, tensor in read_file(file).items()}
    own = clip.state_dict()
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise UserError(f"CLIP {file} belongs to another config than {config}: name its own config, or another file")
    clip.load_state_dict(tensors)
    return clip.eval().requires_grad_(False)


def require_labels(bench: COCOImageDataset) -> dict[str, Labels]:
    """Case -> labels of its reference. Raises UserError: not the small world's benchmark, or an incomplete one."""
    labels = bench_labels(bench.root)
    if missing := [name for name in bench.ids if name not in labels]:
        raise UserError(
            f"{bench.root / ATTRIBUTES} lacks {len(missing)} of the references: name the small world's benchmark, or "
            f"remove {bench.root} to have it drawn"
        )
    return labels


def mask_box(bench: COCOImageDataset, i: int, mask: Image.Image) -> tuple[int, int, int, int]:
    """r0, r1, c0, c1 of a case's mask. Raises UserError: it is empty."""
    box = bounding_box(np.asarray(mask))
    if box is None:
        raise UserError(f"the mask of case {bench.ids[i]} in {bench.root} is empty: paint its region white")
    return box


@torch.no_grad()
def reconstruction_psnr(model: LatentDiffusion, bench: COCOImageDataset) -> float:
    """Mean PSNR in dB of the benchmark's photos, each reconstructed from the mean of its posterior."""
    values = []
    for i in range(len(bench)):
        image = image_to_tensor(bench.pictures(i)[0])[None].to(model.device)
        reconstruction = model.first_stage_model.reconstruct(image).clamp(-1, 1)
        values.append(-10 * torch.log10((reconstruction - image).square().mean() / 4).item())
    return float(np.mean(values))


@torch.no_grad()
def class_features(clip: nn.Module) -> tuple[Tensor, Tensor]:
    """CLIP's features of the captions of each shape (12,D) and of each pattern (6,D)."""

    def encode(texts: list[str]) -> Tensor:
        return clip.encode_text(torch.from_numpy(np.stack([caption_tokens(text) for text in texts])), normalize=True)

    shapes = encode([shape_caption(shape) for shape in SHAPES])
    return shapes, encode([pattern_caption(pattern) for pattern in PATTERNS])


@torch.no_grad()
def zero_shot_accuracy(clip: nn.Module, bench: COCOImageDataset, batch_size: int = 50) -> tuple[float, float]:
    """Shares of the benchmark's references whose features are nearest to the caption of their own shape, and to that of
    their own pattern. Edits were not trained on these pairs of shape and pattern."""
    labels, size = require_labels(bench), clip.visual.image_size
    shapes, patterns = class_features(clip)
    right_shape, right_pattern = [], []
    for names in (bench.ids[start : start + batch_size] for start in range(0, len(bench), batch_size)):
        references = [bench.pictures(bench.ids.index(name))[2] for name in names]
        seen = clip.encode_image(torch.stack([reference_to_tensor(reference, size) for reference in references]))
        own = [labels[name] for name in names]
        right_shape.append((seen @ shapes.T).argmax(dim=1) == torch.tensor([each.shape for each in own]))
        right_pattern.append((seen @ patterns.T).argmax(dim=1) == torch.tensor([each.pattern for each in own]))
    return torch.cat(right_shape).float().mean().item(), torch.cat(right_pattern).float().mean().item()


def oracle_ceiling(oracle: Extractor, bench: COCOImageDataset) -> dict[str, float]:
    """Metric -> the best score that edits can expect: the oracle's score of the references' own objects, each reduced
    to the size of its case's region."""
    labels = require_labels(bench)
    regions = [oracle.prepare(thing) for thing in reference_objects(bench, bench.root / ATTRIBUTES)]
    scores = identity_scores(oracle(regions), [labels[name] for name in bench.ids])
    return {key: float(value.mean()) for key, value in scores.items()}


def recogniser_ceiling(scorer: LookalikeScorer, bench: COCOImageDataset) -> np.ndarray:
    """(cases,): 1 where the reference's own object, reduced to the size of its case's region, is recognised. The mean
    is the best score that edits can expect."""
    things = reference_objects(bench, bench.root / Individuals.attributes)
    inputs = [(scorer.extractor.prepare(thing), name) for thing, name in zip(things, bench.ids, strict=True)]
    return np.concatenate([scorer.score(inputs[i : i + 50])["top1"] for i in range(0, len(inputs), 50)])


def reference_objects(bench: COCOImageDataset, attributes: Path) -> list[Image.Image]:
    """The references' objects, without the margin around them, each reduced to the size of its case's region.
    attributes: the file of the references' boxes."""
    boxes = {name: case["reference"]["box"] for name, case in json.loads(attributes.read_text()).items()}
    things = []
    for i, name in enumerate(bench.ids):
        _, mask, reference = bench.pictures(i)
        r0, r1, c0, c1 = mask_box(bench, i, mask)
        x0, y0, x1, y1 = boxes[name]
        left, top = (min(edge, REFERENCE_PADDING) for edge in (x0, y0))
        thing = reference.crop((left, top, left + x1 - x0, top + y1 - y0))
        thing.thumbnail((max(c1 - c0, r1 - r0),) * 2, Image.Resampling.BILINEAR)
        things.append(thing)
    return things

"""How well edits follow a control, in the small world: a T2I-Adapter of outlines that is trained for the miniature, on
scenes whose outlines are known, and edits whose outline is compared with the one that was asked for."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from ldm.data.bench.squares import cut
from ldm.data.masks import Box
from ldm.data.sample import Recipe
from ldm.editing.options import WHOLE_PHOTO, Placement, Sampling
from ldm.evaluation.features import Extractor
from ldm.fast.networks import preferred_half_dtype
from ldm.images import PictureFile
from ldm.miniworld.crops import labels_of
from ldm.miniworld.identity import Identity
from ldm.miniworld.neighbours import Case, Scores, layout_scores, paint_windows
from ldm.miniworld.scene import MAX_ROTATION, outlined_scene
from ldm.miniworld.write import SCENE_SIZE, SIDE
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.draws import Draws
from ldm.pipeline import PaintByExample
from ldm.util import group_into_batches

STREAM = 30  # of the scenes to train on, beside those of other modules
BATCH, LEARNING_RATE, WARM_UP, DROPPED = 32, 1e-3, 100, 0.2  # WARM_UP: steps; DROPPED: share of samples that see v
SAMPLING = Sampling(sampler="dpm++", steps=12)
SCALES = (0.5, 1.0)
MARGIN = 0.05  # of the region's sides, around an outline


def lines(outline: np.ndarray) -> Image.Image:
    """The control picture of an object's pixels (H,W) bool: L, its edge white on black, about 2 pixels wide."""
    return Image.fromarray(
        cv2.morphologyEx(255 * outline.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    )


# ------------------------------------------------------------------------------------------------ training


def draw_samples() -> Iterator[dict[str, Tensor]]:
    """Entries of training (see ldm.data.sample) of the objects of one scene after the other, with "control", their
    control picture (1,SIDE,SIDE) uint8."""
    recipe = Recipe(image_size=SIDE)
    for number in count():
        rng, file = np.random.default_rng((1, STREAM, number)), io.BytesIO()
        pixels, objects = outlined_scene((0, STREAM, number), SCENE_SIZE)
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        picture = PictureFile(f"scene {number}", file.getvalue())
        for thing, shown in objects:
            plan = recipe.plan(thing.box, SCENE_SIZE, rng)
            part = cut(255 * shown.astype(np.uint8), plan.window).resize((SIDE, SIDE))
            control = torch.from_numpy(np.array(lines(np.asarray(part) > 127)))
            yield recipe.render(picture, plan, rng) | {"control": control[None]}


def encode_samples(model: LatentDiffusion, samples: int) -> dict[str, Tensor]:
    """What training sees of the first samples: LatentDiffusion.encode_batch and "control", in memory."""
    drawn = tqdm(islice(draw_samples(), samples), desc="encoding", total=samples, unit="sample")
    encoded = []
    for entries in group_into_batches(drawn, BATCH, lambda entry: None):
        batch = default_collate(entries)
        with _autocast(model):
            encoded.append(model.encode_batch(batch) | {"control": batch["control"]})
    return {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}


def new_adapter(model: LatentDiffusion) -> Any:
    """A T2IAdapter of diffusers that fits the model, of random weights, for grey control pictures."""
    from diffusers import T2IAdapter

    from ldm.methods.control import adapter_channels

    channels = adapter_channels(model.model.diffusion_model)
    return T2IAdapter(in_channels=1, channels=channels, downscale_factor=model.first_stage_model.factor)


def train_adapter(network: Any, model: LatentDiffusion, encoded: Mapping[str, Tensor], minutes: float) -> None:
    """Trains a T2IAdapter with the model's own loss for about this time; the model is frozen.

    Timesteps t = (1 - u^3) T, as in Mou et al. 2023, section 3.4: the noisy ones decide where things are."""
    from ldm.methods.control import Control

    unet, total = model.requires_grad_(False).model.diffusion_model, len(encoded["mask"])
    control = Control(network, [unet])
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    begin, average = time.monotonic(), None
    with tqdm(desc="training", unit="step") as bar:
        for step in count():
            share = min(1.0, (time.monotonic() - begin) / (60 * minutes))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min((step + 1) / WARM_UP, 1 - 0.95 * share)
            chosen = torch.randint(total, (min(BATCH, total),))
            batch = {name: tensor[chosen] for name, tensor in encoded.items()}
            seeds = torch.randint(2**31, (len(chosen), 1)).tolist()
            draws = Draws.from_seeds(seeds, batch["gt_moments"][0, :4].shape, model.num_timesteps, model.device)
            late = ((1 - (draws.t / model.num_timesteps) ** 3) * model.num_timesteps).long()
            draws = replace(draws, t=late.clamp(max=model.num_timesteps - 1))
            with _autocast(model):
                features = network(batch.pop("control") / 255)
                with control.added(features):
                    loss, _ = model.batch_loss(batch, draws, DROPPED)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
            bar.set_postfix(loss=f"{average:.4f}")
            bar.update()
            if share == 1:
                return


def _autocast(model: LatentDiffusion) -> torch.autocast:
    half = preferred_half_dtype(model.device)
    return torch.autocast(model.device.type, half, enabled=half != torch.float32)


# ------------------------------------------------------------------------------------------------ measuring


def posed(identity: Identity, angle: float, box: Box) -> np.ndarray:
    """(SIDE,SIDE) bool: the pixels of an object seen from above, turned by an angle (as in Object) and as large as fits
    into the box."""
    distance, turn = identity.relief()[..., 0], np.radians(angle)
    towards = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])  # y is down
    points = towards @ np.argwhere(distance > 0).T[::-1]
    low, high, box_low, box_high = points.min(axis=1), points.max(axis=1), np.array(box[:2]), np.array(box[2:])
    scale = (1 - 2 * MARGIN) * min((box_high - box_low) / (high - low))
    shift = (box_low + box_high - 1) / 2 - scale * (low + high) / 2
    matrix = np.column_stack([scale * towards, shift])
    return cv2.warpAffine(distance, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=-1) > 0


def another_pose(case: Case) -> np.ndarray:
    """The reference's shape, turned to the angle that is farthest from the old object's and the reference's."""
    angles = np.linspace(-1, 1, 17) * np.degrees(MAX_ROTATION)
    distances = np.abs(angles[:, None] - np.array(case.angles)).min(axis=1)
    return posed(case.new, angles[distances.argmax()], case.box)


CONTROLS: dict[str, Callable[[Case], np.ndarray]] = {
    "the reference's shape, turned": another_pose,
    "the old object's outline": lambda case: case.outline,
}


def measure(
    edit: PaintByExample, oracle: Extractor, cases: Sequence[Case]
) -> Iterator[tuple[str, Scores, list[Image.Image]]]:
    """Of plain edits and each of SCALES: IoU of the new object's outline, as GrabCut sees it, with the case's, which is
    the control; the reference's shape, pattern and colours in the region, as the oracle sees them; the pictures."""
    labels = [labels_of(asdict(case.new)) for case in cases]
    for name, scale in {"plain": 0.0, **{f"`--control_scale {scale:g}`": scale for scale in SCALES}}.items():
        painted = paint(edit, cases, scale)
        yield name, layout_scores(oracle, cases, labels, painted), painted


def paint(edit: PaintByExample, cases: Sequence[Case], scale: float) -> list[Image.Image]:
    """The cases' edits; the control picture is their outline."""
    placement = Placement(context=WHOLE_PHOTO)
    inputs = [
        edit.plan(c.photo, c.mask, [c.reference], placement, lines(c.outline).convert("RGB")).inputs for c in cases
    ]
    return paint_windows(edit, inputs, replace(SAMPLING, control_scale=scale))


def seconds(edit: PaintByExample, cases: Sequence[Case], scale: float) -> float:
    """Median time of an edit by itself, after a first one."""
    times = []
    paint(edit, cases[:1], scale)
    for case in cases:
        begin = time.perf_counter()
        paint(edit, [case], scale)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))

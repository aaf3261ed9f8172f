"""How well CLIP's features tell shape from pattern: a linear probe (Alain and Bengio 2016, arXiv 1610.01644), fitted on
references of the pairs that training shows and asked about the held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.conventions import reference_to_tensor
from ldm.data.bench.squares import cut
from ldm.data.masks import reference_region
from ldm.miniworld.crops import labels_of
from ldm.miniworld.identity import draw_held_out, draw_identity
from ldm.miniworld.write import SCENE_SIZE, attributes_of, scene
from ldm.util import require

STREAM = 20  # of random numbers, other than those of the data sets and the benchmark
Encode = Callable[[Tensor], Tensor]

REFERENCES = 1000  # drawn to fit the probe; half as many are asked about, of each kind


def probe_accuracy(encode: Encode, size: int) -> tuple[float, float]:
    """Shares of references whose shape a probe tells: of other references of shown pairs, and of held-out pairs.
    encode: references (n,3,size,size), CLIP-normalised -> features (n,D).

    If the second is much lower than the first, a model that is trained on shown pairs cannot know the shape of a
    held-out pair either, since it learns what to read from the same features."""
    others = REFERENCES // 2
    shown, shapes = features(encode, size, REFERENCES + others, held_out=False)
    probe = require("sklearn.linear_model", "eval").LogisticRegression(C=10.0, max_iter=2000)
    probe.fit(shown[others:], shapes[others:])
    return probe.score(shown[:others], shapes[:others]), probe.score(*features(encode, size, others, held_out=True))


@torch.no_grad()
def features(
    encode: Encode, size: int, count: int, held_out: bool, batch_size: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Features (count,D), scaled to length 1, of references that no file has, and their shapes (count,)."""
    found, shapes, batch = [], [], []
    for reference, shape in tqdm(draw(count, held_out), total=count, desc="probe", unit="reference", leave=False):
        batch.append(reference_to_tensor(reference, size))
        shapes.append(shape)
        if len(batch) == batch_size or len(shapes) == count:
            found.append(F.normalize(encode(torch.stack(batch)).float(), dim=-1).cpu().numpy())
            batch = []
    return np.concatenate(found), np.array(shapes)


def draw(count: int, held_out: bool) -> Iterator[tuple[Image.Image, int]]:
    """References, as the benchmark has them, and the indices of their shapes."""
    number = 0
    while count > 0:
        look = draw_held_out if held_out else draw_identity
        pixels, things = scene((STREAM, int(held_out), number), SCENE_SIZE, draw=look)
        for thing in things[:count]:
            reference = cut(pixels, reference_region(thing.box, SCENE_SIZE))
            yield reference, labels_of(attributes_of(thing)).shape
        count -= len(things)
        number += 1

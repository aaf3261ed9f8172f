"""The probe that asks CLIP's features for the shape of held-out pairs."""

import numpy as np
import pytest

from ldm.conventions import reference_to_tensor
from ldm.miniworld import probe
from ldm.miniworld.identity import HELD_OUT
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.shapes import SHAPES
from ldm.miniworld.write import attributes_of

pytest.importorskip("sklearn")


def pairs(held_out: bool) -> list[tuple[int, int]]:
    every = [(s, p) for s in range(len(SHAPES)) for p in range(len(PATTERNS))]
    return [(s, p) for s, p in every if ((SHAPES[s], PATTERNS[p]) in HELD_OUT) == held_out]


def one_hot(number: int, count: int) -> np.ndarray:
    return np.eye(count)[number]


@pytest.mark.parametrize(("encode", "expected"), [
    (lambda s, p: np.concatenate([one_hot(s, 12), one_hot(p, 6)]), (1, 1)),  # shape and pattern apart
    (lambda s, p: one_hot(6 * s + p, 72), (1, 0)),  # a direction for every pair: nothing is known of a new one
])  # fmt: skip
def test_what_the_probe_says_of_known_features(encode, expected, monkeypatch):
    def features(encode_pictures, size, count, held_out):
        drawn = [pairs(held_out)[i % len(pairs(held_out))] for i in range(count)]
        return np.stack([encode(*each) for each in drawn]), np.array([s for s, _ in drawn])

    monkeypatch.setattr(probe, "features", features)
    monkeypatch.setattr(probe, "REFERENCES", 400)
    shown, held_out = probe.probe_accuracy(None, 8)
    assert shown == expected[0]
    assert held_out == pytest.approx(expected[1], abs=0.15)  # or by chance, 1 in 12


@pytest.mark.parametrize("held_out", [False, True])
def test_references_are_of_shown_or_of_held_out_pairs(held_out, monkeypatch):
    things = []
    monkeypatch.setattr(probe, "attributes_of", lambda thing: things.append(thing) or attributes_of(thing))
    drawn = list(probe.draw(9, held_out))
    assert len(drawn) == 9
    assert [SHAPES[shape] for _, shape in drawn] == [thing.identity.shape for thing in things]
    assert {((thing.identity.shape, thing.identity.pattern) in HELD_OUT) for thing in things} == {held_out}
    assert all(min(reference.size) >= 16 for reference, _ in drawn)
    again = list(probe.draw(9, held_out))
    assert [(r.tobytes(), s) for r, s in drawn] == [(r.tobytes(), s) for r, s in again]


def test_features_are_those_of_the_references(monkeypatch):
    """Of all of them, in batches and in order, at the size that is asked for."""
    sizes = []

    def encode(pictures):
        sizes.append(pictures.shape)
        return pictures.flatten(1)

    found, shapes = probe.features(encode, 8, 5, held_out=True, batch_size=2)
    assert sizes == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)] and np.allclose(np.linalg.norm(found, axis=1), 1)
    drawn = list(probe.draw(5, held_out=True))
    assert shapes.tolist() == [shape for _, shape in drawn]
    own = reference_to_tensor(drawn[4][0], 8).flatten().numpy()
    assert np.allclose(found[4], own / np.linalg.norm(own), atol=1e-6)

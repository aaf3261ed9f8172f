"""Captions, labels and crops of the small world's objects: the training data of its CLIP and oracle."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ldm.conventions import reference_to_tensor
from ldm.miniworld.captions import CAPTION_LENGTH, COLOURS, END, WORDS, caption, caption_tokens
from ldm.miniworld.crops import ReferenceCrops, RegionCrops, bench_labels, lab, read_objects
from ldm.miniworld.identity import Identity
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.shapes import SHAPES
from ldm.util import UserError
from tests.miniworld.conftest import MINI


def test_every_caption_fits_and_reads_back():
    colours = list(COLOURS.values())
    longest = 0
    for shape in SHAPES:
        for pattern in PATTERNS:
            for first, second in zip(colours, colours[1:] + colours[:1], strict=True):
                text = caption(Identity(shape, pattern, first, second))
                tokens = caption_tokens(text)
                assert tokens.shape == (CAPTION_LENGTH,) and tokens.argmax() == len(text.split())
                assert " ".join(WORDS[token - 1] for token in tokens if 0 < token < END) == text
                longest = max(longest, len(text.split()) + 1)
    assert longest <= CAPTION_LENGTH
    text = json.loads((MINI / "clip.json").read_text())["text_cfg"]
    assert text["vocab_size"] > END and text["context_length"] == CAPTION_LENGTH


def test_colours_in_lab():
    """CIE's values of red, white and a grey, for sRGB under D65."""
    known = [(53.24, 80.09, 67.20), (100.0, 0.0, 0.0), (53.59, 0.0, 0.0)]
    np.testing.assert_allclose(100 * lab([(1, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5)]), known, atol=0.3)


def test_crops_are_functions_of_their_key(world):
    objects = read_objects(world / "world", "train")
    for kind in (ReferenceCrops, RegionCrops):
        plain, augmented = (kind("train", str(world / "world"), augment=augment) for augment in (False, True))
        assert len(plain) == len(objects)
        for i in (0, 5):
            assert torch.equal(augmented[2, i]["image"], augmented[2, i]["image"])
            assert not torch.equal(augmented[2, i]["image"], augmented[3, i]["image"])
            assert torch.equal(plain[0, i]["image"], plain[i]["image"])
            thing = objects[i]
            assert plain[i]["shape"] == SHAPES.index(thing.shape)
            assert plain[i]["pattern"] == PATTERNS.index(thing.pattern)
            read = [" ".join(WORDS[t - 1] for t in tokens if 0 < t < END) for tokens in plain[i]["caption"]]
            adjective = thing.caption.split()[1 if thing.pattern == "solid" else -2]
            assert read == [thing.caption, f"a {thing.shape}", f"a {adjective} thing"]


def test_crops_show_the_object(world):
    """A reference is the box and 10 px around it; a region is the box alone."""
    thing = read_objects(world / "world", "validation")[1]
    picture = np.asarray(Image.open(world / "world" / thing.image).convert("RGB"))
    x0, y0, x1, y1 = thing.box
    around = picture[max(0, y0 - 10) : y1 + 10, max(0, x0 - 10) : x1 + 10]
    reference = ReferenceCrops("validation", str(world / "world"))[1]["image"]
    wanted = reference_to_tensor(Image.fromarray(cv2.resize(around, (224, 224))))
    assert (reference - wanted).abs().mean() < 0.02
    region = RegionCrops("validation", str(world / "world"), least=56)[1]["image"]
    wanted = torch.from_numpy(cv2.resize(picture[y0:y1, x0:x1], (40, 40), interpolation=cv2.INTER_AREA))
    assert (region - wanted.permute(2, 0, 1) / 255).abs().mean() < 0.08


def test_missing_and_damaged_worlds_are_errors(tmp_path):
    with pytest.raises(UserError, match="make_miniworld"):
        ReferenceCrops("train", str(tmp_path))
    good = {"shape": "star", "pattern": "dots", "colour": [0, 0, 1], "second": [1, 1, 1]}
    for wrong in ({"shape": "cube"}, {"colour": [1, 2]}, {"second": [1, 1, 1, 1]}, {"colour": None}):
        (tmp_path / "attributes.json").write_text(json.dumps({"0": {"reference": good | wrong}}))
        with pytest.raises(UserError, match="attributes"):
            bench_labels(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train-objects.jsonl").write_text(json.dumps({"image": "a.jpg", **good}) + "\n")
    with pytest.raises(UserError, match="train-objects"):
        ReferenceCrops("train", str(tmp_path))

"""Fixtures of the tests of training: pictures to train on, and main.py."""

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.conftest import ROOT


@pytest.fixture
def train(script, monkeypatch):
    """Calls main.py with words, as a user in the repository's root does -> its stdout."""
    monkeypatch.chdir(ROOT)

    def run(*words):
        code, out, err = script("main", *words)
        assert code == 0, err[-3000:]
        return out

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """26 pictures to train on, 6 batches of 4 per epoch, and 4 to validate with."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 26), ("validation", 4)):
        (root / split).mkdir()
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
            small.resize((84, 72), Image.Resampling.BICUBIC).save(root / split / f"{i}.png")
        (root / "bbox").mkdir(exist_ok=True)
        rows = {"path": [f"{split}/{i}.png" for i in range(count)], "boxes": [[[20.0, 16.0, 60.0, 50.0]]] * count}
        pl.DataFrame(rows).write_parquet(root / f"bbox/{split}.parquet")
    return root

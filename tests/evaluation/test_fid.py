"""Fréchet and kernel distances, against golden numbers, torchmetrics and the definition; statistics of real
pictures."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.evaluation import features
from ldm.evaluation.fid import Statistics, frechet_distance, kernel_distance, rows_to_keep
from ldm.evaluation.folder import real_statistics
from ldm.util import UserError
from tests.evaluation.conftest import CLIP


@pytest.mark.parametrize("name", ["full_rank", "rank_deficient"])
def test_the_published_frechet_distance(numbers, name):
    sets = []
    for i in (1, 2):
        own = Statistics()
        own.add(numbers[f"fid_{name}/features{i}"])
        np.testing.assert_allclose(own.mean, numbers[f"fid_{name}/mu{i}"], atol=1e-12)
        np.testing.assert_allclose(own.covariance, numbers[f"fid_{name}/sigma{i}"], atol=1e-11)
        sets.append(own)
    a, b = sets
    distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert distance == pytest.approx(numbers[f"fid_{name}/fid"], rel=1e-6)
    assert frechet_distance(a.mean, a.covariance, a.mean, a.covariance) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_the_distance_of_a_set_from_itself_is_not_negative(seed):
    features = np.random.default_rng(seed).normal(size=(10 + 5 * seed, 24))
    one = features.mean(0), np.cov(features, rowvar=False)
    assert 0 <= frechet_distance(*one, *one) < 1e-10
    assert np.isnan(frechet_distance(one[0] * np.nan, one[1], *one))


@pytest.mark.parametrize("count", [200, 12])
def test_frechet_distance_agrees_with_torchmetrics(count):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Identity):
        num_features = 16

    rng = np.random.default_rng(0)
    real = rng.normal(size=(count, 16)) @ rng.normal(size=(16, 16))
    made = rng.normal(1.0, 2.0, (count + 7, 16))
    other = FrechetInceptionDistance(Features()).set_dtype(torch.float64)
    own = [Statistics(), Statistics()]
    for statistics, x, is_real in zip(own, (real, made), (True, False), strict=True):
        for batch in np.array_split(x, 5):
            other.update(torch.from_numpy(batch), real=is_real)
            statistics.add(batch)
    a, b = own
    distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert distance == pytest.approx(other.compute().item(), rel=1e-5)


def test_statistics_do_not_depend_on_batches():
    x = np.random.default_rng(0).normal(1e4, 1.0, (500, 3))
    for sizes in ([500], [1, 2, 97, 400], [100] * 5):
        own = Statistics()
        for batch in np.split(x, np.cumsum(sizes)[:-1]):
            own.add(batch, np.ones(len(batch), bool))
        np.testing.assert_allclose(own.covariance, np.cov(x.T), rtol=1e-9)
        np.testing.assert_allclose(np.array(own.rows), x, rtol=1e-6)
    assert rows_to_keep(30) == set(range(30))
    kept = rows_to_keep(20_000)
    assert len(kept) == 5000 and kept == rows_to_keep(20_000) and kept < set(range(20_000))


def test_kernel_distance_by_the_definition():
    """The unbiased squared maximum mean discrepancy, summed pair by pair. Every subset holds all features."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.normal(0.5, 1.0, (9, 4))

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (n * (n - 1))
    between = sum(k(x[i], y[j]) for i, j in pairs) / n**2
    assert kernel_distance(x, y) == pytest.approx(within - 2 * between)
    assert np.isnan(kernel_distance(x[:1], y))


def test_statistics_of_real_pictures_are_stored(place, weights, tmp_path):
    folder = tmp_path / "real"
    shutil.copytree(place.bench / "test2017_square", folder)
    clip = features.load_clip(weights / "clip.safetensors", model=CLIP)
    first = real_statistics(folder, clip)
    (stored,) = tmp_path.glob("*.npz")
    again = real_statistics(folder, clip)
    assert np.array_equal(first.scatter, again.scatter) and again.n == 40
    (folder / "0.png").unlink()
    assert real_statistics(folder, clip).n == 39  # computed again
    folder.rename(tmp_path / "away")
    assert real_statistics(folder, clip).n == 39  # from the file alone
    with pytest.raises(UserError, match="nor does real-"):  # equal weights in another network
        real_statistics(folder, replace(clip, model="another"))
    (tmp_path / "away").rename(folder)
    arrays = dict(np.load(stored))
    for name, value in (("mean", arrays["mean"] * np.nan), ("n", 1), ("rows", arrays["rows"][:, :3])):
        np.savez(stored, **arrays | {name: value})
        with pytest.raises(UserError, match="cannot be read"):
            real_statistics(folder, clip)
    stored.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="cannot be read"):
        real_statistics(folder, clip)
    stored.unlink()
    (folder / "1.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"1\.png is not a picture"):
        real_statistics(folder, clip)
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "2.png", tmp_path / "one")
    with pytest.raises(UserError, match="use at least two"):
        real_statistics(tmp_path / "one", clip)

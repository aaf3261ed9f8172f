"""The quality score, against golden numbers and scikit-learn; mixtures from npz files and from pickles."""

import copy
import os
import pickle

import numpy as np
import pytest

from ldm.evaluation.quality import Mixture, quality_score
from ldm.util import UserError


def test_the_published_score_of_quality(numbers):
    """The published code ignores the images after the last full batch of 50."""
    for name in ("small", "fifty", "sixty", "hundredtwenty"):
        count = numbers[f"qs_{name}/n_images_scored"]
        score = quality_score(numbers[f"qs_{name}/log_likelihood"][:count]).mean()
        assert score == pytest.approx(numbers[f"qs_{name}/score"], abs=1e-9)


def test_likelihood_agrees_with_scikit_learn(fitted, tmp_path):
    x, other = fitted
    own = Mixture.fit(x, 3, name="some features")
    np.testing.assert_allclose(own.log_likelihood(x), other.score_samples(x), rtol=1e-10)
    own.write(tmp_path / "gmm.npz")
    again = Mixture.read(tmp_path / "gmm.npz")
    assert np.array_equal(again.log_likelihood(x), own.log_likelihood(x)) and again.features == "some features"
    with pytest.raises(UserError, match="has 5 dimensions but the features have 6: name another"):
        own.log_likelihood(np.zeros((2, 6)))
    with pytest.raises(UserError, match="fitted to features of some features"):
        own.require_features("others")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickled_mixture_is_read(fitted, protocol, tmp_path):
    x, other = fitted
    (tmp_path / "gmm").write_bytes(pickle.dumps(other, protocol=protocol))
    own = Mixture.from_pickle(tmp_path / "gmm")
    np.testing.assert_allclose(own.log_likelihood(x), other.score_samples(x), rtol=1e-10)


class RunsCode:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickled_mixture_runs_nothing(fitted, tmp_path, script):
    """Code beside the arrays or in their place is never run; the script reports it in one sentence."""
    x, mixture = fitted
    other = copy.copy(mixture)
    trace = tmp_path / "trace"
    other.random_state = RunsCode(trace)
    (tmp_path / "beside").write_bytes(pickle.dumps(other))
    other.means_ = RunsCode(trace)
    (tmp_path / "instead").write_bytes(pickle.dumps(other))
    read = Mixture.from_pickle(tmp_path / "beside")
    np.testing.assert_allclose(read.log_likelihood(x), mixture.score_samples(x), rtol=1e-10)
    import joblib

    joblib.dump(mixture, tmp_path / "joblib")
    (tmp_path / "cut").write_bytes(pickle.dumps(mixture)[:300])
    (tmp_path / "list").write_bytes(pickle.dumps([1, 2]))
    for name, words in (("instead", "as a pickled"), ("joblib", "joblib wrote it"), ("cut", "as a pickled"),
                        ("list", "holds no GaussianMixture"), ("absent", "cannot be read")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Mixture.from_pickle(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "beside").read_bytes())  # does run it
    assert trace.exists()
    code, _, err = script("fit_quality_gmm", "--pickle", tmp_path / "instead", "--output", tmp_path / "gmm.npz")
    assert code == 2 and "cannot be read as a pickled GaussianMixture" in err and not (tmp_path / "gmm.npz").exists()


def test_a_damaged_mixture_is_an_error(tmp_path, fitted):
    _, other = fitted
    good = {
        "weights": other.weights_,
        "means": other.means_,
        "precisions_cholesky": other.precisions_cholesky_,
        "features": "",
    }
    for name, value in (("weights", -other.weights_), ("means", other.means_ * np.nan), ("means", other.means_[:2])):
        np.savez(tmp_path / "gmm.npz", **good | {name: value})
        with pytest.raises(UserError, match="cannot be read"):
            Mixture.read(tmp_path / "gmm.npz")

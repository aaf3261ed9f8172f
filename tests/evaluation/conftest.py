"""A made-up benchmark with results of the tiny model, and random weights of the networks that score them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.evaluation import features
from ldm.evaluation.quality import Mixture
from tests.conftest import ROOT
from tests.documents import commands_of

CLIP, DINO = "ViT-S-32", "vit_tiny_patch16_224"  # small architectures of open_clip and timm
COUNT = 30  # cases of the benchmark


@pytest.fixture(scope="session")
def numbers(golden):
    """Golden numbers of the published evaluation."""
    return golden("eval").arrays


def run(command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Files of random weights with the names that the networks' authors use."""
    import open_clip
    import timm
    import torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(open_clip.create_model(CLIP).state_dict(), root / "clip.safetensors")
    torch.save(timm.create_model(DINO, num_classes=0).state_dict(), root / "dino.pth")
    with pytest.MonkeyPatch.context() as patch:  # torch-fidelity cannot build it without weights
        patch.setattr("torch.load", lambda *_, **__: None)
        patch.setattr("torch.nn.Module.load_state_dict", lambda *_, **__: None)
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    for layer in inception.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # otherwise the features are nearly constant
    torch.save(inception.state_dict(), root / "inception.pth")
    alexnet = torchvision.models.alexnet().state_dict()
    torch.save({k: v for k, v in alexnet.items() if k.startswith("features.")}, root / "lpips.pth")
    return root


@pytest.fixture(scope="session")
def photo():
    """150 x 100 pixels."""
    return Image.open(ROOT / "examples/image/example_2.jpg").convert("RGB").resize((150, 100))


@pytest.fixture(scope="session")
def place(tmp_path_factory, tiny, weights):
    """A folder in which all documented commands but the last have run: a benchmark of 30 cases of 128 x 128 pixels,
    real pictures, results of the tiny model. `place(script, ...)` returns the words of a script's documented command,
    with the flags that it needs here."""
    root = tmp_path_factory.mktemp("place")
    for name in ("ldm", "scripts", "configs"):
        (root / name).symlink_to(ROOT / name)
    bench = root / "test_bench"
    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples/image").glob("*.jpg"))]

    def cut(width, height):
        photo = photos[rng.integers(len(photos))]
        side = int(rng.integers(100, min(photo.size)))
        x, y = (int(rng.integers(length - side + 1)) for length in photo.size)
        return photo.resize((width, height), Image.Resampling.LANCZOS, (x, y, x + side, y + side))

    for folder in ("GT_3500", "Mask_bbox_3500", "Ref_3500"):
        (bench / folder).mkdir(parents=True)
    (root / "coco/test2017").mkdir(parents=True)
    ids = np.arange(COUNT) * 37 + 5
    for i in ids:
        cut(128, 128).save(bench / f"GT_3500/{i:012}_GT.png")
        cut(70, 90).save(bench / f"Ref_3500/{i:012}_ref.png")
        mask = np.zeros((128, 128), np.uint8)
        x, y = rng.integers(8, 60, 2)
        mask[y : y + 40, x : x + 50] = 255
        Image.fromarray(mask).save(bench / f"Mask_bbox_3500/{i:012}_mask.png")
    np.save(bench / "id_list.npy", ids)
    for i in range(40):
        cut(150, 128).save(root / f"coco/test2017/{i}.jpg")

    models = ["--clip_weights", weights / "clip.safetensors", "--clip_model", CLIP]
    others = [
        word for kind in ("inception", "dino", "lpips") for word in (f"--{kind}_weights", weights / f"{kind}.pth")
    ]
    more = {
        "create_square_gt_for_fid": ["--size", 128],
        "fit_quality_gmm": [*models, "--components", 3, "--device", "cpu"],
        "inference_test_bench": ["--config", "configs/tiny.yaml", "--ckpt", tiny, "--ddim_steps", 2, "--device", "cpu"],
        "eval_fid_qs_clip": [*models, *others, "--dino_model", DINO, "--device", "cpu"],
    }
    scripts = [f"scripts/{name}.py" for name in more]
    documented = {command.split()[1]: command.split()[1:] for command in commands_of(*scripts)}
    assert set(documented) == set(scripts)

    def words(script, *extra):
        return [str(word) for word in (*documented[f"scripts/{script}.py"], *more[script], *extra)]

    for script in ("create_square_gt_for_fid", "fit_quality_gmm", "inference_test_bench"):
        done = run([sys.executable, *words(script)], root)
        assert done.returncode == 0, done.stderr
    words.root, words.bench, words.results = root, bench, root / "results/test_bench/results"
    return words


@pytest.fixture
def here(place, monkeypatch):
    """`place`, as the working folder."""
    monkeypatch.chdir(place.root)
    return place


@pytest.fixture(scope="session")
def evaluated(place, weights):
    """The last documented command: its stdout, scores.json and the folder of both files. The mixture is replaced by one
    Gaussian, with which QS is neither 0 nor 100."""
    assert Mixture.read(place.bench / "quality_gmm.npz").means.shape == (3, 384)  # which fit_quality_gmm.py fitted
    clip = features.load_clip(weights / "clip.safetensors", model=CLIP)
    x = clip([clip.prepare(Image.open(path)) for path in sorted(place.results.iterdir())]).numpy()
    wide = 1.0
    while True:
        factor = np.linalg.cholesky(np.linalg.inv(np.cov(x.T) + wide * np.eye(384)))
        mixture = Mixture(np.ones(1), x.mean(0)[None], factor[None], clip.identity)
        if mixture.log_likelihood(x).mean() > 150:
            break
        wide *= 0.9
    mixture.write(place.bench / "quality_gmm.npz")
    done = run([sys.executable, *place("eval_fid_qs_clip")], place.root)
    assert done.returncode == 0, done.stderr
    outdir = place.results.parent / "evaluation"
    return done.stdout, json.loads((outdir / "scores.json").read_text()), outdir


@pytest.fixture(scope="session")
def fitted():
    """Points (400,5) and scikit-learn's mixture of 3 Gaussians that was fitted to them."""
    from sklearn.mixture import GaussianMixture

    x = np.random.default_rng(0).normal(size=(400, 5)) * [1, 2, 3, 4, 5]
    return x, GaussianMixture(3, random_state=0).fit(x)

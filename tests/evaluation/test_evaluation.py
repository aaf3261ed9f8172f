"""Scores against the golden numbers, scikit-learn, torchmetrics, scipy and the networks' own libraries; and the two
commands of a benchmark, run as they are."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.conventions import image_to_tensor, normalise_clip
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation import features
from ldm.evaluation.background import NEAR, background_psnr, background_ssim, seam, with_source_region
from ldm.evaluation.benchmark import METRICS, mean_interval
from ldm.evaluation.clip_score import bounding_box, clip_region, published_crop, similarity
from ldm.evaluation.fid import Statistics, frechet_distance, kernel_distance, rows_to_keep
from ldm.evaluation.folder import real_statistics
from ldm.evaluation.quality import Mixture, quality_score
from ldm.util import UserError
from tests.conftest import GOLDEN, ROOT
from tests.documents import commands_of

# ---------------------------------------------------------------------------------------------- golden


@pytest.fixture(scope="module")
def numbers():
    return np.load(GOLDEN / "eval.npz")


def test_the_published_crop(numbers):
    failed = 0
    for mask, crop, shape, error in zip(
        *(numbers[f"clip_{name}"] for name in ("masks", "crop_r0_r1_c0_c1", "crop_tensor_shape", "error")), strict=True
    ):
        if error:
            assert published_crop(mask) is None
            failed += 1
        else:
            r0, r1, c0, c1 = published_crop(mask)
            assert (r0, r1, c0, c1) == tuple(crop) and (r1 - r0, c1 - c0) == tuple(shape[1:])
    assert failed == 4


def test_the_published_score_of_quality(numbers):
    """But for what it dropped: the images after the last full batch of 50."""
    for name in ("small", "fifty", "sixty", "hundredtwenty"):
        count = numbers[f"qs_{name}/n_images_scored"]
        score = quality_score(numbers[f"qs_{name}/log_likelihood"][:count]).mean()
        assert score == pytest.approx(numbers[f"qs_{name}/score"], abs=1e-9)


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


# ------------------------------------------------------------------------------------------ other libraries


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


def test_statistics_gather_whatever_the_batches():
    x = np.random.default_rng(0).normal(1e4, 1.0, (500, 3))
    for sizes in ([500], [1, 2, 97, 400], [100] * 5):
        own = Statistics()
        for batch in np.split(x, np.cumsum(sizes)[:-1]):
            own.add(batch, np.ones(len(batch), bool))
        np.testing.assert_allclose(own.covariance, np.cov(x.T), rtol=1e-9)
        np.testing.assert_allclose(np.array(own.rows), x, rtol=1e-6)
    assert rows_to_keep(30) == set(range(30))
    assert len(rows_to_keep(20_000)) == 5000 and rows_to_keep(20_000) == rows_to_keep(20_000)


def test_kernel_distance_by_the_definition():
    """Unbiased squared maximum mean discrepancy, summed pair by pair; all features are in every subset."""
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


@pytest.fixture(scope="module")
def fitted():
    from sklearn.mixture import GaussianMixture

    x = np.random.default_rng(0).normal(size=(400, 5)) * [1, 2, 3, 4, 5]
    return x, GaussianMixture(3, random_state=0).fit(x)


def test_likelihood_agrees_with_scikit_learn(fitted, tmp_path):
    x, other = fitted
    own = Mixture.fit(x, 3, name="some features")
    np.testing.assert_allclose(own.log_likelihood(x), other.score_samples(x), rtol=1e-10)
    own.write(tmp_path / "gmm.npz")
    again = Mixture.read(tmp_path / "gmm.npz")
    assert np.array_equal(again.log_likelihood(x), own.log_likelihood(x)) and again.features == "some features"
    with pytest.raises(UserError, match="of 5 numbers a picture, the features are of 6"):
        own.log_likelihood(np.zeros((2, 6)))
    with pytest.raises(UserError, match="fitted to features of some features"):
        own.check("others")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickled_mixture_is_taken_over(fitted, protocol, tmp_path):
    x, other = fitted
    (tmp_path / "gmm").write_bytes(pickle.dumps(other, protocol=protocol))
    own = Mixture.from_pickle(tmp_path / "gmm")
    np.testing.assert_allclose(own.log_likelihood(x), other.score_samples(x), rtol=1e-10)


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickled_mixture_runs_nothing(fitted, tmp_path, script):
    """Neither beside what is wanted, nor in its place; the script says one sentence."""
    _, other = fitted
    trace = tmp_path / "trace"
    state = other.__dict__
    try:
        other.random_state = Runs(trace)
        (tmp_path / "beside").write_bytes(pickle.dumps(other))
        other.means_, means = Runs(trace), other.means_
        (tmp_path / "instead").write_bytes(pickle.dumps(other))
    finally:
        other.random_state, other.means_ = 0, means
        assert other.__dict__ is state
    Mixture.from_pickle(tmp_path / "beside")
    import joblib

    joblib.dump(other, tmp_path / "joblib")
    (tmp_path / "cut").write_bytes(pickle.dumps(other)[:300])
    (tmp_path / "list").write_bytes(pickle.dumps([1, 2]))
    for name, words in (("instead", "is no pickled"), ("joblib", "joblib wrote it"), ("cut", "is no pickled"),
                        ("list", "holds no GaussianMixture"), ("absent", "cannot be read")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Mixture.from_pickle(tmp_path / name)
    assert not trace.exists()
    code, _, err = script("fit_quality_gmm", "--pickle", tmp_path / "instead", "--output", tmp_path / "gmm.npz")
    assert code == 2 and "is no pickled GaussianMixture" in err and not (tmp_path / "gmm.npz").exists()


def test_intervals_agree_with_scipy():
    from scipy.stats import bootstrap

    x = np.random.default_rng(0).gamma(2.0, size=300)
    other = bootstrap((x,), np.mean, n_resamples=5000, method="percentile", vectorized=True).confidence_interval
    assert mean_interval(x) == pytest.approx(tuple(other), abs=0.03)
    assert mean_interval(x) == mean_interval(x)


# ----------------------------------------------------------------------------------- region and background


def test_bounding_box_has_the_last_row_and_column():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 7:20] = 255
    assert bounding_box(mask) == (5, 9, 7, 20) and published_crop(mask) == (5, 8, 7, 19)
    assert bounding_box(np.zeros((4, 4), np.uint8)) is None


def test_the_region_is_resized_after_it_is_normalised():
    """Bilinear without antialias: where the crop is of the right size already, the very pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:43, 20:53] = 255
    own = torch.from_numpy(clip_region(Image.fromarray(pixels), mask, 32))
    wanted = normalise_clip(torch.from_numpy(pixels[10:42, 20:52].copy()).permute(2, 0, 1) / 255.0)
    torch.testing.assert_close(own, wanted)
    assert clip_region(Image.fromarray(pixels), np.zeros_like(mask), 32) is None
    a, b = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [4.0, -3.0]])
    assert similarity(a, b).tolist() == [1.0, 0.0]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(3, 40, 48, generator=generator)
    image = (source + 0.05 * torch.randn(source.shape, generator=generator)).clamp(0, 1)
    keep = torch.ones(1, 40, 48)
    keep[:, 10:30, 12:30] = 0
    return image, source, keep


def test_background_scores_agree_with_torchmetrics_where_all_is_kept(pair):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    image, source, _ = pair
    every = torch.ones(1, 40, 48)
    psnr = peak_signal_noise_ratio(image, source, data_range=1.0).item()
    assert background_psnr(image, source, every) == pytest.approx(psnr, rel=1e-5)
    ssim = structural_similarity_index_measure(image[None], source[None], data_range=1.0).item()
    assert background_ssim(image, source, every) == pytest.approx(ssim, abs=0.01)  # which leaves out a border


def test_background_scores_do_not_see_the_painted_region(pair):
    image, source, keep = pair
    other = image * keep + (1 - keep) * 0.3
    for measure in (background_psnr, background_ssim):
        assert measure(image, source, keep) == measure(other, source, keep)
    clean = source * keep + (1 - keep) * 0.3
    assert background_psnr(clean, source, keep) == 100 and background_ssim(clean, source, keep) == pytest.approx(1)
    torch.testing.assert_close(with_source_region(clean, source, keep), source)
    noisier = (source + 2 * (image - source)).clamp(0, 1)
    assert background_psnr(noisier, source, keep) < background_psnr(image, source, keep) - 3


def test_seam():
    keep = torch.ones(1, 64, 64)
    keep[:, 20:40, 20:40] = 0
    ramp = torch.linspace(0, 0.63, 64).expand(3, 64, 64)  # 0.01 from column to column
    assert seam(torch.full((3, 64, 64), 0.4), keep) == pytest.approx(1)
    pasted = torch.where(keep == 0, torch.tensor(0.6), torch.tensor(0.4)).expand(3, 64, 64)
    assert seam(pasted, keep) == pytest.approx((0.2 + 1 / 255) * 255, rel=1e-5)  # elsewhere it is flat
    assert seam(ramp, keep) == pytest.approx(1, abs=0.02)
    assert seam(ramp + 0.1 * (1 - keep), keep) > 5
    far = ramp.clone()
    far[..., : 20 - NEAR - 2] = torch.rand(3, 64, 20 - NEAR - 2)  # what is not near does not count
    assert seam(far, keep) == pytest.approx(seam(ramp, keep))
    assert seam(ramp, torch.ones(1, 64, 64)) is None


# ------------------------------------------------------------------------------------------- the networks

CLIP, DINO = "ViT-S-32", "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the networks, in the files and under the names that their authors use; CLIP and DINO small."""
    import open_clip
    import timm
    import torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_file(open_clip.create_model(CLIP).state_dict(), root / "clip.safetensors")
    torch.save(timm.create_model(DINO, num_classes=0).state_dict(), root / "dino.pth")
    with pytest.MonkeyPatch.context() as patch:  # it has no way to be made without weights
        patch.setattr("torch.load", lambda *_, **__: None)
        patch.setattr("torch.nn.Module.load_state_dict", lambda *_, **__: None)
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    for layer in inception.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)  # or what comes out is nearly constant
    torch.save(inception.state_dict(), root / "inception.pth")
    alexnet = torchvision.models.alexnet().state_dict()
    torch.save({k: v for k, v in alexnet.items() if k.startswith("features.")}, root / "lpips.pth")
    return root


@pytest.fixture(scope="module")
def photo():
    return Image.open(ROOT / "examples/image/example_2.jpg").convert("RGB").resize((150, 100))


@pytest.mark.integration
def test_clip_features_are_those_of_open_clip(weights, photo):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    own = features.load_clip(weights / "clip.safetensors", model=CLIP)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights / "clip.safetensors"))
    with torch.no_grad():
        wanted = model.eval().encode_image(preprocess(photo)[None])
    torch.testing.assert_close(own([own.prepare(photo)]), wanted)
    assert own.record()["file"] == "clip.safetensors" and len(own.record()["sha256"]) == 64 and own.size == 224


def test_openai_ships_torchscript(weights, tmp_path):
    """Whose tensors are read and whose program is not run."""
    import open_clip

    class Shipped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Tower()
            self.logit_scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.visual(x)

    class Tower(torch.nn.Module):
        def forward(self, x):
            return x

    shipped = Shipped()
    visual = {k: v for k, v in open_clip.create_model(CLIP).state_dict().items() if k.startswith("visual.")}
    for name, tensor in visual.items():
        *path, last = name.split(".")
        module = shipped
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, tensor.half())
    torch.jit.save(torch.jit.trace(shipped, torch.ones(1)), tmp_path / "traced.pt")
    from ldm.checkpoint.files import read_file

    found = read_file(tmp_path / "traced.pt")
    assert {k for k in found if k.startswith("visual.")} == set(visual)
    own = features.load_clip(tmp_path / "traced.pt", model=CLIP)
    torch.testing.assert_close(own.network.state_dict()["conv1.weight"], visual["visual.conv1.weight"].half().float())


def test_dino_features_are_those_of_timm(weights, photo):
    import timm

    own = features.load_dino(weights / "dino.pth", model=DINO)
    model = timm.create_model(DINO, num_classes=0)
    model.load_state_dict(torch.load(weights / "dino.pth", weights_only=True))
    config = timm.data.resolve_model_data_config(model)
    x = torch.from_numpy(np.array(photo.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    x = (x - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(own([own.prepare(photo)]), model.eval()(x[None]))


@pytest.mark.integration
def test_inception_features_are_those_of_torch_fidelity(weights, photo):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    own = features.load_inception(weights / "inception.pth")
    other = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights / "inception.pth"))
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    (wanted,) = other(x[None])
    torch.testing.assert_close(own([own.prepare(photo)]), wanted)
    mixed = own([x.numpy(), x[:, :50].numpy()])  # of two sizes
    assert mixed.shape == (2, 2048) and torch.allclose(mixed[:1], wanted, atol=1e-5)


def test_lpips_by_the_paper(weights, photo):
    """Zhang et al. 2018, eq. 1: unit-normalised activations, squared differences weighted by channel, averaged over
    positions, summed over the five layers."""
    import torchvision

    own = features.load_lpips(weights / "lpips.pth")
    network = own.network.__closure__[0].cell_contents
    net = torchvision.models.alexnet().features.eval()
    net.load_state_dict(
        {k.removeprefix("features."): v for k, v in torch.load(weights / "lpips.pth", weights_only=True).items()}
    )
    a, b = image_to_tensor(photo), image_to_tensor(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    shift, scale = (torch.tensor(x).view(3, 1, 1) for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    total, layer = 0.0, 0
    x = torch.stack([(a - shift) / scale, (b - shift) / scale])
    with torch.no_grad():
        for module in net:
            x = module(x)
            if isinstance(module, torch.nn.ReLU):
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)
                weight = network.lins[layer].model[-1].weight
                total += ((unit[0] - unit[1]) ** 2 * weight[0]).sum(0).mean().item()
                layer += 1
    assert layer == 5 and own([a.numpy()], [b.numpy()]).item() == pytest.approx(total, rel=1e-4)
    assert own([a.numpy()], [a.numpy()]).item() == 0


@pytest.mark.parametrize("kind", ["clip", "inception", "dino", "lpips"])
def test_weights_of_something_else_are_refused(kind, weights, tmp_path):
    load = getattr(features, f"load_{kind}")
    save_file({"visual.x": torch.ones(2), "features.x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"{kind} weights .*other\.safetensors: are of another network"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.pth")


@pytest.mark.parametrize("kind", ["clip", "inception", "dino", "lpips"])
def test_weights_that_cannot_be_fetched(kind, monkeypatch, tmp_path):
    def none(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", none)
    monkeypatch.setattr("torch.hub.download_url_to_file", none)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"{kind}: its weights cannot be fetched \(no network\).*--{kind}_weights"):
        getattr(features, f"load_{kind}")()


@pytest.mark.integration
def test_nothing_is_loaded_before_it_is_asked_for():
    heavy = ("open_clip", "timm", "torch_fidelity", "torchmetrics", "torchvision", "sklearn", "transformers")
    names = [path.stem for path in (ROOT / "ldm/evaluation").glob("[a-z]*.py")]
    code = f"import sys; from ldm.evaluation import {', '.join(names)}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done


# ------------------------------------------------------------------------------------- the two commands

COUNT = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, weights):
    """Where the commands of docs/evaluation.md have been run, except the last: a made-up benchmark of 30 cases of 128 x
    128, real pictures, results of the tiny model; `place(script, ...)` gives the command's words with what it needs
    here."""
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
    printed = {command.split()[1]: command.split()[1:] for command in commands_of(*scripts)}
    assert set(printed) == set(scripts)

    def words(script, *extra):
        return [str(word) for word in (*printed[f"scripts/{script}.py"], *more[script], *extra)]

    for script in ("create_square_gt_for_fid", "fit_quality_gmm", "inference_test_bench"):
        done = run([sys.executable, *words(script)], root)
        assert done.returncode == 0, done.stderr
    words.root, words.bench, words.results = root, bench, root / "results/test_bench/results"
    return words


def run(command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place.root)
    return place


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_every_case_has_a_result(place):
    ids, results = COCOImageDataset(place.bench).ids, place.results
    assert sorted(path.name for path in results.iterdir()) == sorted(f"{name}.png" for name in ids)
    assert len(ids) == COUNT and {Image.open(path).size for path in results.iterdir()} == {(128, 128)}
    made = json.loads((results.parent / "settings.json").read_text())
    assert made["scale"] == 5 and made["steps"] == 2 and len(made["sha256"]) == 64


def test_results_do_not_depend_on_batches_or_processes(place, tmp_path):
    """Two processes of torchrun with another batch size; then some results are gone, and one process goes on."""
    words = place("inference_test_bench", "--outdir", tmp_path, "--batch_size", 3)
    done = run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words], place.root)
    assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "results").iterdir())
    assert len(paths) == COUNT
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert max(np.abs(pixels(path) - pixels(place.results / path.name)).max() for path in paths) <= 1
    for path in paths[:5]:
        path.unlink()
    done = run([sys.executable, *words], place.root)
    assert done.returncode == 0 and f"{COUNT - 5} of {COUNT} results are there already" in done.stdout, done.stderr
    assert all(path.stat().st_mtime_ns == before[path] for path in paths[5:])
    assert max(np.abs(pixels(path) - pixels(place.results / path.name)).max() for path in paths) <= 1


@pytest.mark.parametrize(("more", "before", "words"), [
    (["--scale", 3], {}, "made with scale 5.0, not 3.0"),
    ([], {"lora": "x.safetensors"}, "made with lora x.safetensors, not None"),
    ([], {"cases": "0"}, "made with cases 0, not"),
    ([], {"config": "0"}, "made with config 0, not"),
])  # fmt: skip
def test_results_of_other_settings_are_not_mixed(more, before, words, here, script, tmp_path):
    settings = json.loads((here.results.parent / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | before))
    _, *command = here("inference_test_bench", "--outdir", tmp_path, *more)
    code, _, err = script("inference_test_bench", *command)
    assert code == 2 and words in err and not (tmp_path / "results").exists()


def test_a_damaged_case_does_not_keep_the_others(here, script, tmp_path, monkeypatch):
    """What headers tell is told before the model is loaded; a file that is cut short, when all others are done."""
    bench = tmp_path / "bench"
    bench.mkdir()
    for folder in ("GT_3500", "Mask_bbox_3500", "Ref_3500"):
        (bench / folder).mkdir()
        for path in sorted((here.bench / folder).iterdir())[:3]:
            shutil.copy(path, bench / folder)
    first, *_ = sorted((bench / "Ref_3500").iterdir())
    content = first.read_bytes()
    first.write_bytes(b"no picture")
    _, *words = here("inference_test_bench", "--bench", bench, "--outdir", tmp_path / "out")
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "1 of 3 cases cannot be edited" in err and not (tmp_path / "out").exists()
    first.write_bytes(content[:-100])
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "1 of 3 cases could not be edited" in err
    assert len(list((tmp_path / "out/results").iterdir())) == 2
    monkeypatch.setenv("RANK", "0")
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "RANK and WORLD_SIZE" in err


@pytest.mark.parametrize("ids", [
    np.array(["../../x"]), np.array(["/abs"]), np.array(["a/b"]), np.array([""]), np.array([".."]), np.array([1, 2, 1]),
    np.array([1.5]), np.array([b"x"]), np.array([{}], dtype=object), None,
])  # fmt: skip
def test_ids_are_names_of_files(ids, tmp_path):
    if ids is None:
        (tmp_path / "id_list.npy").write_bytes(b"")
    else:
        np.save(tmp_path / "id_list.npy", ids)
    with pytest.raises(UserError, match=r"id_list\.npy: cannot be read"):
        COCOImageDataset(tmp_path)


def test_pictures_come_from_other_processes_without_a_file_handle_each(place, weights):
    """With as few as 64 of them."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from pathlib import Path
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.evaluation import features
from ldm.evaluation.benchmark import Cases
from ldm.evaluation.folder import batches
clip = features.load_clip({str(weights / "clip.safetensors")!r}, model={CLIP!r})
cases = Cases(Path({str(place.results)!r}), COCOImageDataset({str(place.bench)!r}), dict(clip=clip), ["psnr"])
items = [item for batch in batches(cases, 7, "") for item in batch]
assert len(items) == {COUNT} and all(isinstance(case, dict) for _, case in items), items
"""
    done = run([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def evaluated(place, weights):
    """stdout and scores of the last of these commands, with one Gaussian that makes QS neither 0 nor 100."""
    assert Mixture.read(place.bench / "quality_gmm.npz").means.shape == (3, 384)  # the fitted one
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


def test_the_table(evaluated, weights):
    out, summary, outdir = evaluated
    assert "published" not in out and "CLIP is ViT-S-32 here" in out and "a FID comes out too high" in out
    assert f"{COUNT} of {COUNT} cases" in out and "FID and QS are of CLIP's features" in out
    rows = {row["key"]: row for row in summary["metrics"]}
    assert list(rows) == [metric.key for metric in METRICS if metric.group != "world"]
    for row in rows.values():
        assert row["cases"] == COUNT and np.isfinite(row["value"]), row
        assert row["name"] in out and (row["low"] is None or row["low"] <= row["value"] <= row["high"])
    for key in ("qs", "clip_score", "dino", "psnr", "ssim", "lpips", "seam"):
        assert rows[key]["value"] == pytest.approx(np.mean([case[key] for case in summary["per_case"]]))
        assert rows[key]["low"] < rows[key]["value"] < rows[key]["high"]
    import hashlib

    assert summary["weights"]["dino"] == {
        "model": DINO, "file": "dino.pth", "sha256": hashlib.sha256((weights / "dino.pth").read_bytes()).hexdigest()
    }  # fmt: skip
    assert summary["settings"]["scale"] == 5 and len(summary["mixture"]["sha256"]) == 64
    assert {kind: each["pictures"] for kind, each in summary["real"].items()} == {"clip": 40, "inception": 40}
    page = (outdir / "index.html").read_text()
    assert all(case["id"] in page for case in summary["per_case"]) and page.count("data:image/") >= 4 * COUNT


def test_numbers_are_those_of_other_tools(evaluated, place, weights):
    """One case and one set by hand, with the networks' own libraries."""
    import open_clip
    from safetensors.torch import load_file
    from torchmetrics.image.fid import FrechetInceptionDistance

    _, summary, _ = evaluated
    bench, results = place.bench, place.results
    model, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    model.load_state_dict(load_file(weights / "clip.safetensors"))

    class Features(torch.nn.Module):
        num_features = 384

        def forward(self, x):
            return model.encode_image(x)

    other = FrechetInceptionDistance(Features()).eval()
    model.eval()
    for folder, real in ((bench / "test2017_square", True), (results, False)):
        images = torch.stack([preprocess(Image.open(path)) for path in sorted(folder.iterdir())])
        other.update(images, real=real)
    row = next(row for row in summary["metrics"] if row["key"] == "fid_clip")
    assert row["value"] == pytest.approx(other.compute().item(), rel=1e-3)

    case = summary["per_case"][7]
    ref = Image.open(bench / f"Ref_3500/{case['id']}_ref.png")
    mask = pixels(bench / f"Mask_bbox_3500/{case['id']}_mask.png")
    (r0, *_, r1), (c0, *_, c1) = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    result = Image.open(results / f"{case['id']}.png")
    both = []
    for picture, box in ((result, (c0, r0, c1, r1)), (ref, (0, 0, *ref.size))):
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255.0
        x = (x - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(
            open_clip.OPENAI_DATASET_STD
        ).view(3, 1, 1)
        x = torch.nn.functional.interpolate(x[..., box[1] : box[3], box[0] : box[2]], (224, 224), mode="bilinear")
        both.append(model.encode_image(x)[0])
    wanted = 100 * torch.nn.functional.cosine_similarity(*both, dim=0).item()
    assert case["clip_score"] == pytest.approx(wanted, abs=1e-3)


def test_again_the_same_and_whatever_the_batches(evaluated, here, script, tmp_path):
    _, summary, _ = evaluated
    assert len(list(here.bench.glob("test2017_square-*.npz"))) == 2  # statistics that are kept
    found = []
    for name, size in (("again", 16), ("other", 7)):
        _, *words = here("eval_fid_qs_clip", "--outdir", tmp_path / name, "--batch_size", size, "--most", 2)
        assert script("eval_fid_qs_clip", *words)[0] == 0
        found.append(json.loads((tmp_path / name / "scores.json").read_text()))
    again, other = found
    assert {**again, "date": 0} == {**summary, "date": 0}
    for row, wanted in zip(other["metrics"], summary["metrics"], strict=True):
        assert row["value"] == pytest.approx(wanted["value"], rel=1e-4, abs=0), row["key"]


def test_missing_damaged_and_wrong_results(here, script, tmp_path):
    broken, results = tmp_path / "broken", here.results
    shutil.copytree(results, broken)
    first, second, third, fourth, *_ = sorted(broken.iterdir())
    first.unlink()
    second.write_bytes(b"no picture")
    Image.new("RGB", (64, 128)).save(third)
    fourth.write_bytes(fourth.read_bytes()[:-200])  # its header is well
    few = ["--skip", "fid_clip", "qs", "clip_score", "fid_inception", "kid", "dino", "lpips"]
    _, *words = here("eval_fid_qs_clip", "--outdir", tmp_path / "out", *few, "--results", broken)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "4 of 30 cases cannot be scored" in err and "--allow_missing" in err
    assert not (tmp_path / "out").exists()
    code, out, err = script("eval_fid_qs_clip", *words, "--allow_missing")
    assert code == 0 and f"{COUNT - 4} of {COUNT} cases" in out, err
    summary = json.loads((tmp_path / "out/scores.json").read_text())
    problems = {each["id"]: each["problem"] for each in summary["cases"]["problems"]}
    assert list(problems) == [path.stem for path in (first, second, third, fourth)]
    for path, word in (
        (first, "no such file"),
        (second, "not a picture"),
        (third, "64 x 128"),
        (fourth, "cannot be read"),
    ):
        assert word in problems[path.stem]
    assert all(row["cases"] == COUNT - 4 for row in summary["metrics"]) and not summary["weights"]
    for path in (first, second, third):
        shutil.copy(results / path.name, path)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "1 of 30 cases" in err and "run scripts/inference_test_bench.py again" in err


@pytest.mark.parametrize(("words", "sentence"), [
    (["--skip", "nothing"], "--skip nothing: is no metric"),
    (["--skip", *(metric.key for metric in METRICS)], "leaves nothing to measure"),
    (["--results", "absent"], "--results absent: there is no such folder"),
    (["--bench", "absent"], "absent/GT_3500: has no"),
    (["--results", "results/test_bench"], "name results/test_bench/results"),
    (["--outdir", "results/test_bench/evaluation", "--skip", "psnr"], "has scores that this would lose (psnr)"),
    (["--batch_size", "0"], "--batch_size 0 is out of range"),
    (["--gmm", "absent.npz"], "mixture absent.npz: there is no such file"),
    (["--real", "absent"], "real pictures absent: there is no such folder"),
    (["--clip_model", "none"], "open_clip has no model of that name"),
    (["--dino_model", "none"], "timm has no model of that name"),
    (["--clip_weights", "configs/v1.yaml"], "is neither"),
])  # fmt: skip
def test_what_a_user_can_get_wrong(words, sentence, here, script, tmp_path, evaluated):
    _, *words = here("eval_fid_qs_clip", "--outdir", tmp_path / "out", *words)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and sentence in err and err.strip().count("\n") <= 1, err
    assert not (tmp_path / "out").exists()


def test_statistics_that_are_kept(place, weights, tmp_path):
    folder = tmp_path / "real"
    shutil.copytree(place.bench / "test2017_square", folder)
    clip = features.load_clip(weights / "clip.safetensors", model=CLIP)
    first = real_statistics(folder, clip)
    (kept,) = tmp_path.glob("*.npz")
    again = real_statistics(folder, clip)
    assert np.array_equal(first.scatter, again.scatter) and again.n == 40
    (folder / "0.png").unlink()
    assert real_statistics(folder, clip).n == 39  # made anew
    folder.rename(tmp_path / "away")
    assert real_statistics(folder, clip).n == 39  # without the pictures
    other = features.Extractor(clip.network, "another", clip.file, clip.sha256, clip.device, 224, clip.prepare)
    with pytest.raises(UserError, match="nor real-"):  # the same weights in another network
        real_statistics(folder, other)
    (tmp_path / "away").rename(folder)
    arrays = dict(np.load(kept))
    for name, value in (("mean", arrays["mean"] * np.nan), ("n", 1), ("rows", arrays["rows"][:, :3])):
        np.savez(kept, **arrays | {name: value})
        with pytest.raises(UserError, match="cannot be read"):
            real_statistics(folder, clip)
    kept.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="cannot be read"):
        real_statistics(folder, clip)
    kept.unlink()
    (folder / "1.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"1\.png is not a picture"):
        real_statistics(folder, clip)
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "2.png", tmp_path / "one")
    with pytest.raises(UserError, match="two are the least"):
        real_statistics(tmp_path / "one", clip)


def test_a_mixture_that_is_none(tmp_path, fitted):
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


def test_masks_without_edge_or_background(here, script, tmp_path):
    """All white: nothing was to be kept. Such a case has no score there, and does not count."""
    shutil.copytree(here.bench, tmp_path / "bench", ignore=shutil.ignore_patterns("*.npz", "test2017_square"))
    first = min((tmp_path / "bench/Mask_bbox_3500").iterdir())
    Image.new("L", (128, 128), 255).save(first)
    (tmp_path / "made").mkdir()
    shutil.copy(here.results.parent / "settings.json", tmp_path / "made")
    shutil.copytree(here.results, tmp_path / "made/results")
    few = ["--skip", "fid_clip", "qs", "fid_inception", "kid"]
    more = ("--bench", tmp_path / "bench", "--outdir", tmp_path / "out", "--results", tmp_path / "made/results", *few)
    _, *words = here("eval_fid_qs_clip", *more)
    code, _, err = script("eval_fid_qs_clip", *words)
    assert code == 2 and "made of another benchmark" in err
    (tmp_path / "made/settings.json").unlink()
    assert script("eval_fid_qs_clip", *words)[0] == 0
    summary = json.loads((tmp_path / "out/scores.json").read_text())
    counts = {row["key"]: row["cases"] for row in summary["metrics"]}
    assert counts == {"clip_score": 30, "dino": 30, "psnr": 29, "ssim": 29, "lpips": 29, "seam": 29, "copy_paste": 30}
    assert summary["per_case"][0]["psnr"] is None and summary["per_case"][0]["clip_score"] is not None
    for path in list((tmp_path / "bench/GT_3500").iterdir())[1:]:
        path.unlink()
    code, _, err = script("eval_fid_qs_clip", *words, "--allow_missing")
    assert code == 2 and "1 results that can be scored; two are the least" in err

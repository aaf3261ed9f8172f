"""The networks, against the libraries that they come from; weights that are missing or of another network."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoint.files import read_file
from ldm.conventions import image_to_tensor
from ldm.evaluation import features
from ldm.util import UserError
from tests.conftest import ROOT
from tests.evaluation.conftest import CLIP, DINO


@pytest.mark.integration
def test_clip_features_are_those_of_open_clip(weights, photo):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    own = features.load_clip(weights / "clip.safetensors", model=CLIP)
    model.load_state_dict(load_file(weights / "clip.safetensors"))
    with torch.no_grad():
        wanted = model.eval().encode_image(preprocess(photo)[None])
    torch.testing.assert_close(own([own.prepare(photo)]), wanted)
    assert own.record()["file"] == "clip.safetensors" and len(own.record()["sha256"]) == 64 and own.size == 224


def test_openai_ships_torchscript(weights, tmp_path):
    """The file's tensors are read; its program is not run."""
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
def test_weights_of_another_network_are_refused(kind, weights, tmp_path):
    load = getattr(features, f"load_{kind}")
    save_file({"visual.x": torch.ones(2), "features.x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"{kind} weights .*other\.safetensors belong to another network"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.pth")


@pytest.mark.parametrize("kind", ["clip", "inception", "dino", "lpips"])
def test_weights_that_cannot_be_downloaded(kind, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"{kind} weights cannot be downloaded \(no network\).*--{kind}_weights"):
        getattr(features, f"load_{kind}")()


@pytest.mark.integration
def test_heavy_libraries_are_imported_only_when_needed():
    heavy = ("open_clip", "timm", "torch_fidelity", "torchmetrics", "torchvision", "sklearn", "transformers")
    names = [path.stem for path in (ROOT / "ldm/evaluation").glob("[a-z]*.py")]
    code = f"import sys; from ldm.evaluation import {', '.join(names)}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done

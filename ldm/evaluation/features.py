"""The networks that compute features, each from a file of weights.

| kind | network | features of | from |
|---|---|---|---|
| clip | CLIP ViT-B/32, OpenAI's | images, regions: (B,512) | open_clip |
| inception | Inception v3 of the original FID (Heusel et al. 2017) | images: (B,2048) | torch-fidelity |
| dino | DINO ViT-S/16 (Caron et al. 2021) | regions: (B,384) | timm |
| lpips | AlexNet, LPIPS (Zhang et al. 2018) | pairs of images: a distance | torchvision, torchmetrics |

The user names a file, or it is downloaded once and kept. Reading it runs no code from it, and every tensor must fit.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.files import StateDict, read_file
from ldm.conventions import pixels_to_tensor
from ldm.files import sha256_of
from ldm.modules.encoders.clip import build_clip
from ldm.util import UserError, listing, require

CLIP = "ViT-B-32-quickgelu"  # OpenAI's weights were trained with this activation, "ViT-B-32" of open_clip has another
DINO = "vit_small_patch16_224.dino"
INCEPTION = "inception-v3-compat"


@dataclass(frozen=True)
class Extractor:
    """`extractor(inputs)`: B arrays without a batch axis -> features (B,D) float32 on the CPU.

    kind: "clip", "inception", ...; model, file, sha256: network and weights, as scores.json records them. size: side of
    an input in pixels, None for any. prepare: PIL RGB -> an input. It is an array, since tensors from another process
    need shared memory."""

    kind: str
    network: Callable[..., Tensor]
    model: str
    file: str
    sha256: str
    device: torch.device
    size: int | None = None
    prepare: Callable[[Image.Image], np.ndarray] | None = None

    @torch.inference_mode()
    def __call__(self, *inputs: Sequence[np.ndarray]) -> Tensor:
        """LPIPS, a network of two inputs, takes two lists. Inputs of different sizes are computed one by one.
        Convolutions run in float32 on every GPU. Raises UserError: the GPU's memory is full."""
        if len({x.shape for x in inputs[0]}) > 1:
            return torch.cat([self(*([x] for x in each)) for each in zip(*inputs, strict=True)])
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
                batch = (torch.from_numpy(np.stack(each)).to(self.device) for each in inputs)
                return self.network(*batch).float().cpu()
        except torch.cuda.OutOfMemoryError as error:
            raise UserError("the GPU's memory is full: lower --batch_size") from error

    @property
    def identity(self) -> str:
        """Model and hash of the weights."""
        return f"{self.model} {self.sha256}"

    @property
    def tag(self) -> str:
        """A short hash of `identity`, for names of files."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    def record(self) -> dict[str, str]:
        """The weights' entry in scores.json."""
        return {"model": self.model, "file": self.file, "sha256": self.sha256}


# ---------------------------------------------------------------------------------------------- weights


def _from_hub(repository: str, *names: str) -> Path:
    """The first of the names that the repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, logging

    logging.set_verbosity_error()  # no warnings of retries; a failure is reported below
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repository, names[-1]))


def _from_url(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    return path


def _find_weights(kind: str, file: str | Path | None, download: Callable[[], Path]) -> Path:
    """The given file, or the downloaded one. Raises UserError: the download fails."""
    if file is not None:
        return Path(file)
    print(f"{kind}: looking for its weights", file=sys.stderr)
    try:
        return download()
    except Exception as error:  # without a network, each library raises errors of its own
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"{kind} weights cannot be downloaded ({reason}): name a file with --{kind}_weights, or skip the "
            "metrics that need them with --skip"
        ) from error


def load_strictly(network: nn.Module, tensors: StateDict, kind: str, path: Path) -> None:
    """Raises UserError, which lists the tensors that are missing, left over or of another shape."""
    own = network.state_dict()
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    shapes = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    reasons = [
        f"{word} {listing(names)}"
        for word, names in (("lacks", missing), ("also has", extra), ("has in another shape", shapes))
        if names
    ]
    if reasons:
        raise UserError(
            f"{kind} weights {path} belong to another network, the file {'; '.join(reasons)}: name the right file"
        )
    network.load_state_dict(tensors)


def make_extractor(
    kind: str,
    network: nn.Module,
    model: str,
    path: Path,
    device: torch.device | str,
    size: int | None = None,
    prepare: Callable[[Image.Image], np.ndarray] | None = None,
    result: Callable[[Any], Tensor] | None = None,
) -> Extractor:
    """An extractor of a network with its weights, which are those of `path`. result: converts the network's
    output to features, if it is not the features itself."""
    device = torch.device(device)
    network.eval().requires_grad_(False).to(device)
    call = network if result is None else lambda *inputs: result(network(*inputs))
    return Extractor(kind, call, model, path.name, sha256_of(path), device, size, prepare)


# --------------------------------------------------------------------------------------------- networks


def load_clip(file: str | Path | None = None, device: torch.device | str = "cpu", model: str = CLIP) -> Extractor:
    """CLIP's image features, (B,512) for ViT-B/32, not normalised.

    file: OpenAI's ViT-B-32.pt or open_clip's weights, of which only the image tower is used. model: open_clip's name of
    the architecture, or a config in its format, a JSON file. Raises UserError: an unknown model, weights of another
    network, weights that cannot be downloaded."""
    import open_clip

    is_config = model.endswith(".json")
    if not is_config and model not in open_clip.list_models():
        raise UserError(f"--clip_model {model} is unknown to open_clip: check the name; the paper's is {CLIP}")

    def download() -> Path:
        if model != CLIP:
            raise ValueError(f"only those of {CLIP} are known")
        return _from_hub(
            "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
        )

    path = _find_weights("clip", file, download)
    prefix = "visual."
    tensors = {name[len(prefix) :]: t.float() for name, t in read_file(path).items() if name.startswith(prefix)}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns that it loads no weights
    try:
        tower = (build_clip(model) if is_config else open_clip.create_model(model)).visual
    finally:
        root.setLevel(level)
    load_strictly(tower, tensors, "clip", path)
    size = tower.image_size
    size = size if isinstance(size, int) else size[0]
    transform = open_clip.image_transform(size, is_train=False)  # CLIP's own: bicubic, central square, normalised

    def prepare(picture: Image.Image) -> np.ndarray:
        return transform(picture).numpy()

    return make_extractor("clip", tower, Path(model).stem if is_config else model, path, device, size, prepare)


def load_inception(file: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Inception v3 of the original FID; takes (B,3,H,W) uint8 of any size. file: torch-fidelity's
    weights-inception-2015-12-05-6726825d.pth. Raises UserError, as load_clip."""
    require("torch_fidelity", "eval")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = _find_weights("inception", file, lambda: _from_url(URL_INCEPTION_V3))
    clean = io.BytesIO()  # torch-fidelity would run a pickle's code, so it gets plain tensors
    torch.save(read_file(path), clean)
    clean.seek(0)
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], clean)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"inception weights {path} belong to another network ({reason}): name the right file"
        ) from error
    return make_extractor("inception", network, INCEPTION, path, device, None, pixels, lambda features: features[0])


def load_dino(file: str | Path | None = None, device: torch.device | str = "cpu", model: str = DINO) -> Extractor:
    """DINO's class token, (B,384) for ViT-S/16. file: dino_deitsmall16_pretrain.pth or timm's weights; model: timm's
    name of the architecture. Raises UserError, as load_clip."""
    timm = require("timm", "eval")

    if not timm.is_model(model):
        raise UserError(f"--dino_model {model} is unknown to timm: check the name; the default is {DINO}")
    path = _find_weights("dino", file, lambda: _from_hub(f"timm/{model}", "model.safetensors", "pytorch_model.bin"))
    network = timm.create_model(model, pretrained=False, num_classes=0)
    load_strictly(network, read_file(path), "dino", path)
    settings = timm.data.resolve_model_data_config(network)
    size = settings["input_size"][-1]
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))

    def prepare(picture: Image.Image) -> np.ndarray:
        """Squashed, so that nothing of a region is cut off."""
        return ((pixels_to_tensor(picture.resize((size, size), Image.Resampling.BICUBIC)) - mean) / std).numpy()

    return make_extractor("dino", network, model, path, device, size, prepare)


def load_lpips(file: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """LPIPS (v0.1, AlexNet): (B,3,H,W) twice, in [-1,1] -> distances (B,1). file: torchvision's
    alexnet-owt-7be5be79.pth; the linear heads come with torchmetrics. Raises UserError, as load_clip."""
    torchmetrics = require("torchmetrics", "eval")
    from torchmetrics.functional.image.lpips import _LPIPS  # the public class always downloads AlexNet
    from torchvision.models import AlexNet_Weights

    path = _find_weights("lpips", file, lambda: _from_url(AlexNet_Weights.IMAGENET1K_V1.url))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about its own arguments
        network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    names = {".".join(name.split(".")[1:]): name for name in network.net.state_dict()}  # 0.weight: slice1.0.weight
    convolutions = {name.removeprefix("features."): t for name, t in read_file(path).items() if name[:9] == "features."}
    load_strictly(network.net, {names.get(name, name): t for name, t in convolutions.items()}, "lpips", path)

    model = f"AlexNet, heads of torchmetrics {torchmetrics.__version__}"
    return make_extractor("lpips", network, model, path, device, result=lambda distance: distance.flatten(1))


def pixels(picture: Image.Image) -> np.ndarray:
    """PIL RGB -> (3,H,W) uint8."""
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

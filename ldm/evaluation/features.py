"""The networks that results are measured with, each from a file of weights.

| extractor | network | features of | from |
|---|---|---|---|
| clip | CLIP ViT-B/32, OpenAI's | images, regions: (B,512) | open_clip |
| inception | Inception v3 of the original FID (Heusel et al. 2017) | images: (B,2048) | torch-fidelity |
| dino | DINO ViT-S/16 (Caron et al. 2021) | regions: (B,384) | timm |
| lpips | AlexNet, LPIPS (Zhang et al. 2018) | pairs of images: a distance | torchvision, torchmetrics |
| oracle | the small world's classifier | regions: shape, pattern, colours (B,24) | ldm.miniworld.oracle |

A file is the user's, or fetched once and kept. Reading it runs no code of it, and it has to fit exactly.
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
from ldm.miniworld.crops import region_to_tensor
from ldm.miniworld.oracle import Oracle
from ldm.modules.encoders.clip import build_clip
from ldm.util import UserError, listing

CLIP = "ViT-B-32-quickgelu"  # OpenAI's weights were trained with this activation, "ViT-B-32" of open_clip has another
DINO = "vit_small_patch16_224.dino"
INCEPTION = "inception-v3-compat"


@dataclass(frozen=True)
class Extractor:
    """`extractor(inputs)`, B arrays without a batch axis -> features (B,D) float32 on the CPU.

    prepare: PIL RGB -> an input, an array, which comes from another process without shared memory. size: its side in
    pixels, None for any. model, file, sha256: which network and which weights, for the record."""

    network: Callable[..., Tensor]
    model: str
    file: str
    sha256: str
    device: torch.device
    size: int | None = None
    prepare: Callable[[Image.Image], np.ndarray] | None = None

    @torch.inference_mode()
    def __call__(self, *inputs: Sequence[np.ndarray]) -> Tensor:
        """A network of two inputs, LPIPS, takes two lists. Inputs of several sizes go through one by one. Convolutions
        are in float32 on every GPU. Raises UserError where its memory is full."""
        if len({x.shape for x in inputs[0]}) > 1:
            return torch.cat([self(*([x] for x in each)) for each in zip(*inputs, strict=True)])
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
                batch = (torch.from_numpy(np.stack(each)).to(self.device) for each in inputs)
                return self.network(*batch).float().cpu()
        except torch.cuda.OutOfMemoryError as error:
            raise UserError("the GPU's memory is full; lower --batch_size") from error

    @property
    def identity(self) -> str:
        return f"{self.model} {self.sha256}"

    @property
    def tag(self) -> str:
        """What the names of kept files carry of `identity`."""
        return hashlib.sha256(self.identity.encode()).hexdigest()[:12]

    def record(self) -> dict[str, str]:
        return {"model": self.model, "file": self.file, "sha256": self.sha256}


# ---------------------------------------------------------------------------------------------- weights


def _from_hub(repository: str, *names: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, logging

    logging.set_verbosity_error()  # of its trying again; what comes of it is told

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


def _weights(kind: str, file: str | Path | None, fetch: Callable[[], Path]) -> Path:
    """The file given, or the fetched one. Raises UserError where it cannot be fetched."""
    if file is not None:
        return Path(file)
    print(f"{kind}: looking for its weights", file=sys.stderr)
    try:
        return fetch()
    except Exception as error:  # each library has its own for a network that is not there
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"{kind}: its weights cannot be fetched ({reason}); name a file with --{kind}_weights, or leave out what "
            "needs it with --skip"
        ) from error


def _fill(network: nn.Module, tensors: StateDict, kind: str, path: Path) -> None:
    """Strictly. Raises UserError, naming what does not fit."""
    own = network.state_dict()
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    shapes = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    reasons = [
        f"{word} {listing(names)}"
        for word, names in (("lacks", missing), ("has besides", extra), ("has in another shape", shapes))
        if names
    ]
    if reasons:
        raise UserError(
            f"{kind} weights {path}: are of another network, the file {'; '.join(reasons)}; name the right one"
        )
    network.load_state_dict(tensors)


def _extractor(
    network: nn.Module,
    model: str,
    path: Path,
    device: torch.device | str,
    size: int | None = None,
    prepare: Callable[[Image.Image], np.ndarray] | None = None,
    result: Callable[[Any], Tensor] | None = None,
) -> Extractor:
    """Of a network that has its weights. result: what of the network's output is the features, if not all."""
    device = torch.device(device)
    network.eval().requires_grad_(False).to(device)
    call = network if result is None else lambda *inputs: result(network(*inputs))
    return Extractor(call, model, path.name, sha256_of(path), device, size, prepare)


# --------------------------------------------------------------------------------------------- networks


def load_clip(file: str | Path | None = None, device: torch.device | str = "cpu", model: str = CLIP) -> Extractor:
    """CLIP's image features, (B,512) for ViT-B/32, not normalised. file: OpenAI's ViT-B-32.pt, or open_clip's weights;
    of these only the image tower is used. model: open_clip's name of the architecture, or a config in its
    format, a JSON file. Raises UserError: unknown model, weights of another one or not to be had."""
    import open_clip

    own = model.endswith(".json")
    if not own and model not in open_clip.list_models():
        raise UserError(f"--clip_model {model}: open_clip has no model of that name; for the paper's take {CLIP}")

    def fetch() -> Path:
        if model != CLIP:
            raise ValueError(f"only those of {CLIP} are")
        return _from_hub(
            "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
        )

    path = _weights("clip", file, fetch)
    prefix = "visual."
    tensors = {name[len(prefix) :]: t.float() for name, t in read_file(path).items() if name.startswith(prefix)}
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns of weights that are not loaded
    try:
        tower = (build_clip(model) if own else open_clip.create_model(model)).visual
    finally:
        root.setLevel(level)
    _fill(tower, tensors, "clip", path)
    size = tower.image_size
    size = size if isinstance(size, int) else size[0]
    transform = open_clip.image_transform(size, is_train=False)  # as CLIP does it: bicubic, central square, normalised

    def prepare(picture: Image.Image) -> np.ndarray:
        return transform(picture).numpy()

    return _extractor(tower, Path(model).stem if own else model, path, device, size, prepare)


def load_inception(file: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """Inception v3 as the original FID had it; takes (B,3,H,W) uint8 of any size. file: torch-fidelity's
    weights-inception-2015-12-05-6726825d.pth. Raises UserError: weights of another network or not to be had."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = _weights("inception", file, lambda: _from_url(URL_INCEPTION_V3))
    clean = io.BytesIO()  # the library would read a pickle as it is: it gets one that holds nothing but our tensors
    torch.save(read_file(path), clean)
    clean.seek(0)
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], clean)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"inception weights {path}: are of another network ({reason}); name the right file") from error
    return _extractor(network, INCEPTION, path, device, None, pixels, lambda features: features[0])


def load_dino(file: str | Path | None = None, device: torch.device | str = "cpu", model: str = DINO) -> Extractor:
    """DINO's class token, (B,384) for ViT-S/16. file: dino_deitsmall16_pretrain.pth or timm's. Raises UserError."""
    import timm

    if not timm.is_model(model):
        raise UserError(f"--dino_model {model}: timm has no model of that name; the usual one is {DINO}")
    path = _weights("dino", file, lambda: _from_hub(f"timm/{model}", "model.safetensors", "pytorch_model.bin"))
    network = timm.create_model(model, pretrained=False, num_classes=0)
    _fill(network, read_file(path), "dino", path)
    settings = timm.data.resolve_model_data_config(network)
    size = settings["input_size"][-1]
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))

    def prepare(picture: Image.Image) -> np.ndarray:
        """Squashed: nothing of a region is cut off."""
        return ((pixels_to_tensor(picture.resize((size, size), Image.Resampling.BICUBIC)) - mean) / std).numpy()

    return _extractor(network, model, path, device, size, prepare)


def load_lpips(file: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """LPIPS (v0.1, AlexNet): (B,3,H,W) twice, in [-1,1] -> distances (B,1). file: torchvision's
    alexnet-owt-7be5be79.pth; the linear heads come with torchmetrics. Raises UserError."""
    import torchmetrics
    from torchmetrics.functional.image.lpips import _LPIPS  # the public class fetches AlexNet, file or not
    from torchvision.models import AlexNet_Weights

    path = _weights("lpips", file, lambda: _from_url(AlexNet_Weights.IMAGENET1K_V1.url))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, of its own arguments
        network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    places = {".".join(name.split(".")[1:]): name for name in network.net.state_dict()}  # 0.weight: slice1.0.weight
    convolutions = {name.removeprefix("features."): t for name, t in read_file(path).items() if name[:9] == "features."}
    _fill(network.net, {places.get(name, name): t for name, t in convolutions.items()}, "lpips", path)

    model = f"AlexNet, heads of torchmetrics {torchmetrics.__version__}"
    return _extractor(network, model, path, device, result=lambda distance: distance.flatten(1))


def load_oracle(file: str | Path, device: torch.device | str = "cpu") -> Extractor:
    """The small world's oracle: of a region, logits of its shape and of its pattern, and two colours, (B,24) in all.
    file: a run's last.ckpt, or what scripts/convert_checkpoint.py made of it. Raises UserError."""
    path = Path(file)
    network = Oracle()
    _fill(network, {name.removeprefix("oracle."): t.float() for name, t in read_file(path).items()}, "oracle", path)

    def prepare(picture: Image.Image) -> np.ndarray:
        return region_to_tensor(np.asarray(picture)).numpy()

    return _extractor(
        network, "oracle", path, device, None, prepare, lambda out: torch.cat([x.flatten(1) for x in out], 1)
    )


def pixels(picture: Image.Image) -> np.ndarray:
    """PIL RGB -> (3,H,W) uint8."""
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

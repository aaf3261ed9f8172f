"""A LatentDiffusion's networks as an edit runs them: in which precision, memory layout and form."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.fast.offload import on_device
from ldm.fast.region import WHOLE_PICTURE, Rectangle, RegionEps, WholePicture
from ldm.fast.unet import FastUNet, convert, replace_upsampling
from ldm.models.autoencoder import decode_in_tiles, encode_in_tiles
from ldm.models.diffusion.denoiser import make_denoiser
from ldm.models.diffusion.sampling import Eps
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import UserError

COMPILED = Path("~/.cache/paint-by-example/compiled")  # kept between runs; TORCHINDUCTOR_CACHE_DIR says otherwise
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FLOAT32 = (  # of the autoencoder: its last layers, and the two 1x1 convolutions
    *("encoder.norm_out", "encoder.conv_out", "quant_conv"),
    *("decoder.norm_out", "decoder.conv_out", "post_quant_conv"),
)


def choose_precision(device: torch.device, precision: str | None = None) -> str:
    """What is asked for; None: autocast on CUDA, else full."""
    return precision or ("autocast" if device.type == "cuda" else "full")


def preferred_half_dtype(device: torch.device) -> torch.dtype:
    """The half precision that gains time on a device; float32 on a CPU where none does."""
    if device.type == "cpu":  # without AVX-512 or the like a convolution in bf16 takes a hundred times as long
        has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if has else torch.float32
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if ampere else torch.float16


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """full: float32; bf16; fp16; autocast: preferred_half_dtype. Raises UserError."""
    names = {
        "full": torch.float32,
        "autocast": preferred_half_dtype(device),
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    if precision not in names:
        raise UserError(f"precision {precision!r} is unknown; use one of {', '.join(names)}")
    return names[precision]


def check_network_options(device: torch.device, precision: str, fast: bool, compiled: bool) -> torch.dtype:
    """The dtype of a valid request; the arguments of Networks. Raises UserError."""
    if compiled and not (fast and device.type == "cuda"):
        raise UserError("--compile is for NVIDIA's GPUs, and not with --plain; leave it out")
    return resolve_dtype(precision, device)


class Networks:
    """Stands in for the model in conditioning.py, under the same names; float32 goes in and comes out.

    fast: the same numbers to rounding from less work (modules/diffusionmodules/fast.py), half precision as weights of
    half precision; else the model's own modules, half precision by autocast in UNet and CLIP. compiled: by
    torch.compile, for NVIDIA's GPUs. offload: a GPU to which each network moves only while it works, the model being on
    the CPU; None: all stay where the model is."""

    def __init__(
        self,
        model,
        precision: str = "full",
        fast: bool = True,
        compiled: bool = False,
        offload: torch.device | None = None,
    ):
        self.model = model
        self.device = offload or model.device
        self.dtype = check_network_options(self.device, precision, fast, compiled)
        self.fast, self.compiled = fast, compiled
        self.first_stage, self.cond_stage_model = model.first_stage_model, model.cond_stage_model
        # in float32 on a CPU it gains nothing, loses digits in norms, and weights could not be shared
        gains = self.device.type == "cuda" or (self.device.type == "cpu" and self.dtype != torch.float32)
        self.layout = torch.channels_last if fast and gains else torch.contiguous_format
        if fast:
            assert not hasattr(model.model.diffusion_model, "peft_config"), "layers of peft: merge them, or fast=False"
            self.unet = FastUNet(model.model.diffusion_model, model.num_timesteps, self.dtype, self.layout)
            self.shifts = self.unet.table()
            exact = replace_upsampling(convert(model.first_stage_model), transposed=gains)
            self.first_stage = convert(exact, self.dtype, self.layout)
            for name in FLOAT32:
                self.first_stage.set_submodule(name, exact.get_submodule(name))
            self.cond_stage_model = convert(model.cond_stage_model, self.dtype)
        if compiled:
            self._compile()

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        """Which of a GPU's kernels run: cuDNN's attention, on an H200 twice as fast as the default, and those
        convolutions that a trial finds fastest."""
        if self.fast and self.device.type == "cuda":
            with sdpa_kernel(ATTENTION, set_priority=True), torch.backends.cudnn.flags(enabled=True, benchmark=True):
                yield
        else:
            yield

    def _autocast(self) -> torch.autocast:
        """Half precision of the model's own UNet and CLIP."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _at_work(self, *networks: nn.Module) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.device == self.model.device else on_device(self.device, *networks)

    def unet_on_device(self) -> contextlib.AbstractContextManager:
        """To be around all calls of a denoiser's eps."""
        fast = self.fast and self.cond_stage_model.tokens == 1
        return self._at_work(self.unet if fast else self.model.model)

    def _compile(self) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED.expanduser()))
        for network in (self.unet, self.first_stage.encoder, self.first_stage.decoder, self.cond_stage_model):
            network.compile(mode="reduce-overhead", dynamic=False)

    # ------------------------------------------------------------------------------ what conditioning.py asks for

    @property
    def learnable_vector(self) -> Tensor:
        return self.model.learnable_vector.to(self.device)

    def proj_out(self, learned: Tensor) -> Tensor:
        with self._at_work(self.model.proj_out):
            return self.model.proj_out(learned.float())

    def get_learned_conditioning(self, reference: Tensor) -> Tensor:
        """(B,3,S,S) -> (B,M,width)."""
        if not self.fast:
            with self._autocast(), self._at_work(self.cond_stage_model):
                return self.cond_stage_model.encode(reference)
        with self._kernels(), self._at_work(self.cond_stage_model):
            return self.cond_stage_model.encode(reference.to(self.dtype))

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,h,w), not scaled; large pictures in tiles."""
        with self._kernels(), self._at_work(self.first_stage):
            return encode_in_tiles(self.first_stage, image.to(memory_format=self.layout))

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution, noise: Tensor | None = None) -> Tensor:
        return self.model.get_first_stage_encoding(posterior, noise)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) -> (B,3,H,W), about [-1,1]; large pictures in tiles."""
        z = (z / self.model.scale_factor).to(memory_format=self.layout)
        own = self.model.first_stage_model  # float32, for what half precision cannot hold
        for first_stage in (self.first_stage, own):
            with self._kernels(), self._at_work(first_stage):
                picture = self._kept(decode_in_tiles(first_stage, z).contiguous())
            if first_stage is own or self.dtype == torch.float32 or picture.isfinite().all():
                return picture

    def denoiser(self, inpaint: Tensor, contexts: Tensor, refresh: int = 1) -> Eps:
        """A denoiser.Denoiser. Contexts of several tokens go through the model's own UNet. refresh: of
        denoiser.RegionEps; 1: all is computed."""
        if not self.fast or contexts.shape[1] > 1:
            return make_denoiser(self._apply_model)(inpaint, contexts)
        home = self.model.device  # of the published UNet, little of which is needed here
        fixed, vectors = (t.to(self.device) for t in self.unet.prepare(inpaint.to(home), contexts.to(home)))
        shifts = self.shifts.to(self.device)

        def eps(x: Tensor, t: int, area: WholePicture = WHOLE_PICTURE) -> Tensor:
            with self._kernels():
                return self._kept(self.unet(x, shifts[t : t + 1], fixed, vectors, area))

        rectangle = self.rectangle(inpaint[:, -1:], refresh)
        return RegionEps(eps, rectangle, refresh, self.model.schedule) if rectangle else eps

    def rectangle(self, keep: Tensor, refresh: int) -> Rectangle | None:
        """keep (B,1,h,w): the mask, at the latent's size -> what is computed between evaluations of the whole. None:
        all is, because that is asked for (1), or little would be saved, or the UNet is plain, or on a GPU, where it has
        not been measured: kernels that are chosen by trial would be tried anew for each size of a rectangle."""
        if refresh == 1 or not self.fast or self.device.type != "cpu" or self.cond_stage_model.tokens > 1:
            return None
        return Rectangle.around(keep != 1, self.model.size_multiple // self.model.first_stage_model.factor)

    def _apply_model(self, x: Tensor, t: Tensor, contexts: Tensor) -> Tensor:
        with self._autocast():
            return self.model.apply_model(x, t, contexts).float()

    def _kept(self, result: Tensor) -> Tensor:
        """A compiled network's result is overwritten by its next."""
        return result.clone() if self.compiled else result

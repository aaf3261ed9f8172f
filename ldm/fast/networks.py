"""How an edit runs a LatentDiffusion's networks: in which form, precision and memory layout, on which device."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized

from ldm.conventions import INPAINT, NOISY_LATENT
from ldm.fast.convert import convert, replace_upsampling
from ldm.fast.offload import on_device
from ldm.fast.onednn import cpu_multiplies_bf16
from ldm.fast.region import WHOLE_PICTURE, Area, Rectangle, RegionEps
from ldm.fast.unet import FastTransformerBlock, FastUNet, prepare_edit, timestep_shifts
from ldm.models.autoencoder import AutoencoderKL, decode_in_tiles, encode_in_tiles
from ldm.models.diffusion.denoiser import make_denoiser
from ldm.models.diffusion.sampling import Eps
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.detail import BlockDetail, recorded_outputs
from ldm.modules.diffusionmodules.openaimodel import layers_of
from ldm.modules.distributions import DiagonalGaussianDistribution
from ldm.util import UserError

if TYPE_CHECKING:  # it imports Lightning, which takes two seconds
    from ldm.models.diffusion.ddpm import LatentDiffusion

COMPILE_CACHE = Path("~/.cache/paint-by-example/compiled")  # TORCHINDUCTOR_CACHE_DIR names another
ATTENTION_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
FLOAT32_LAYERS = (  # of the autoencoder: its last layers and the two 1x1 convolutions
    *("encoder.norm_out", "encoder.conv_out", "quant_conv"),
    *("decoder.norm_out", "decoder.conv_out", "post_quant_conv"),
)


def choose_precision(device: torch.device, precision: str | None = None) -> str:
    """The precision that is asked for; by default autocast on CUDA, full elsewhere."""
    return precision or ("autocast" if device.type == "cuda" else "full")


def preferred_half_dtype(device: torch.device) -> torch.dtype:
    """The faster half precision of a device; float32 for a CPU on which half precision is slower than float32."""
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bf16() else torch.float32
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
    return torch.bfloat16 if has_bf16 else torch.float16


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """full: float32; bf16; fp16; autocast: preferred_half_dtype. Raises UserError."""
    names = {
        "full": torch.float32,
        "autocast": preferred_half_dtype(device),
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }
    if precision not in names:
        raise UserError(f"precision {precision!r} is unknown: use one of {', '.join(names)}")
    return names[precision]


def check_network_options(device: torch.device, precision: str, fast: bool, compiled: bool) -> torch.dtype:
    """Checks the arguments of Networks -> the dtype of the precision. Raises UserError."""
    if compiled and not (fast and device.type == "cuda"):
        raise UserError("--compile needs an NVIDIA GPU and does not go with --plain: leave it out")
    return resolve_dtype(precision, device)


class Networks:
    """A model's networks, as an edit runs them. They take the model's place in conditioning.py (ConditioningModel).
    Inputs and outputs are float32.

    fast: networks that compute the same, to rounding, from less work (unet.py, convert.py); half precision means
        weights in half precision. Otherwise the model's own modules run, half precision by autocast in UNet and CLIP.
    compiled: by torch.compile; for NVIDIA's GPUs
    offload: a GPU to which each network moves only while it works, the model being on the CPU; None: all networks stay
        where the model is"""

    def __init__(
        self,
        model: LatentDiffusion,
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
        # channels last is no faster in float32 on a CPU, norms lose digits in it, and weights could not be shared
        gains = self.device.type == "cuda" or (self.device.type == "cpu" and self.dtype != torch.float32)
        self.layout = torch.channels_last if fast and gains else torch.contiguous_format
        if fast:
            self._build_fast_networks()
        if compiled:
            self._compile()

    def _build_fast_networks(self) -> None:
        unet = self.model.model.diffusion_model
        is_plain = not hasattr(unet, "peft_config") and not any(map(is_parametrized, unet.modules()))
        assert is_plain, "the UNet has layers of an adapter: merge the adapter, or use fast=False"
        self.unet = FastUNet(unet, self.dtype, self.layout)
        self.shifts = timestep_shifts(unet, self.model.num_timesteps, self.dtype)
        exact = convert(self.model.first_stage_model)
        replace_upsampling(exact, transposed=self.layout == torch.channels_last)
        self.first_stage = convert(exact, self.dtype, self.layout)
        for name in FLOAT32_LAYERS:
            self.first_stage.set_submodule(name, exact.get_submodule(name))
        self.cond_stage_model = convert(self.model.cond_stage_model, self.dtype)

    def _compile(self) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILE_CACHE.expanduser()))
        for network in (self.unet, self.first_stage.encoder, self.first_stage.decoder, self.cond_stage_model):
            network.compile(mode="reduce-overhead", dynamic=False)

    # ------------------------------------------------------------------------------ settings and devices

    @contextlib.contextmanager
    def _fast_kernels(self) -> Iterator[None]:
        """On a GPU: cuDNN's attention, on an H200 twice as fast as the default, and for each convolution the fastest
        kernel by trial."""
        if self.fast and self.device.type == "cuda":
            backends = sdpa_kernel(ATTENTION_BACKENDS, set_priority=True)
            with backends, torch.backends.cudnn.flags(enabled=True, benchmark=True):
                yield
        else:
            yield

    def _autocast(self) -> torch.autocast:
        """Half precision of the model's own UNet and CLIP."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _on_device(self, *networks: nn.Module) -> contextlib.AbstractContextManager[None]:
        stay = self.device == self.model.device
        return contextlib.nullcontext() if stay else on_device(self.device, *networks)

    def unet_on_device(self, *others: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A denoiser's eps may only be called inside this context. others: networks that take part in it."""
        fast = self.fast and self.cond_stage_model.tokens == 1
        return self._on_device(self.unet if fast else self.model.model, *others)

    # ------------------------------------------------------------------------------ as LatentDiffusion has them

    @property
    def learnable_vector(self) -> Tensor:
        return self.model.learnable_vector.to(self.device)

    def proj_out(self, learned: Tensor) -> Tensor:
        with self._on_device(self.model.proj_out):
            return self.model.proj_out(learned.float())

    def get_learned_conditioning(self, reference: Tensor) -> Tensor:
        """(B,3,S,S) -> (B,M,width)."""
        return self._encode(self.cond_stage_model.encode, reference)

    def clip_features(self, pictures: Tensor) -> Tensor:
        """What the frozen CLIP makes of pictures (B,3,S,S), CLIP-normalised: its class token (B,width)."""
        return self._encode(self.cond_stage_model.features, pictures)[:, 0].float()

    def _encode(self, encoder: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        """encoder: a method of cond_stage_model."""
        with self._on_device(self.cond_stage_model):
            if not self.fast:
                with self._autocast():
                    return encoder(pictures)
            with self._fast_kernels():
                return encoder(pictures.to(self.dtype))

    def encode_first_stage(self, image: Tensor) -> DiagonalGaussianDistribution:
        """(B,3,H,W) in [-1,1] -> posterior over (B,4,h,w), not scaled; large pictures in tiles."""
        with self._fast_kernels(), self._on_device(self.first_stage):
            return encode_in_tiles(self.first_stage, image.to(memory_format=self.layout))

    def get_first_stage_encoding(self, posterior: DiagonalGaussianDistribution, noise: Tensor | None = None) -> Tensor:
        return self.model.get_first_stage_encoding(posterior, noise)

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) -> (B,3,H,W), about [-1,1]; large pictures in tiles. A picture that overflows in half
        precision is decoded again in float32."""
        z = (z / self.model.scale_factor).to(memory_format=self.layout)
        picture = self._decode(self.first_stage, z)
        if self.fast and self.dtype != torch.float32 and not picture.isfinite().all():
            picture = self._decode(self.model.first_stage_model, z)
        return picture

    def _decode(self, first_stage: AutoencoderKL, z: Tensor) -> Tensor:
        with self._fast_kernels(), self._on_device(first_stage):
            return self._copy_if_compiled(decode_in_tiles(first_stage, z).contiguous())

    def denoiser(
        self,
        inpaint: Tensor,
        contexts: Tensor,
        refresh: int = 1,
        shares: Tensor | None = None,
        details: Sequence[BlockDetail] | None = None,
    ) -> Eps:
        """eps(x, t), as denoiser.Denoiser describes it. Contexts of several tokens go through the model's own UNet.
        refresh: of RegionEps; with 1 every evaluation computes the whole picture. shares (b,K,h,w): the K tokens of a
        context are those of K regions, see FastUNet. details: of ldm.models.detail, for the last rows of contexts."""
        assert self.fast or shares is None, "FastUNet alone takes a token for each region"
        fast = self.fast and (contexts.shape[1] == 1 or shares is not None)
        if details is not None:
            details = [each.to(self.device, self.dtype if fast else torch.float32) for each in details]
        if not fast:
            return make_denoiser(functools.partial(self.apply_model, details=details))(inpaint, contexts)
        fixed, vectors = self._prepare_edit(inpaint, contexts)
        shifts = self.shifts.to(self.device)

        def eps(x: Tensor, t: int, area: Area = WHOLE_PICTURE) -> Tensor:
            with self._fast_kernels():
                return self._copy_if_compiled(self.unet(x, shifts[t : t + 1], fixed, vectors, area, shares, details))

        rectangle = self.rectangle(inpaint[:, -1:], refresh)
        return RegionEps(eps, rectangle, refresh, self.model.schedule) if rectangle else eps

    def _prepare_edit(self, inpaint: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """prepare_edit, on the device."""
        unet, home = self.model.model.diffusion_model, self.model.device  # with offload, the CPU
        prepared = prepare_edit(unet, inpaint.to(home), contexts.to(home), self.dtype)
        fixed, vectors = (tensor.to(self.device) for tensor in prepared)
        return fixed, vectors

    def rectangle(self, keep: Tensor, refresh: int) -> Rectangle | None:
        """The rectangle that RegionEps computes between evaluations of the whole picture, or None if every evaluation
        computes the whole picture. keep (B,1,h,w): the mask at the latent's size, 1 = keep.

        None if refresh is 1, if a rectangle would save little, if the plain UNet runs, or on a GPU, where rectangles
        have not been measured and cuDNN would search kernels anew for each new size."""
        if refresh == 1 or not self.fast or self.device.type != "cpu" or self.cond_stage_model.tokens > 1:
            return None
        return Rectangle.around(keep != 1, self.model.size_multiple // self.model.first_stage_model.factor)

    def apply_model(
        self, x: Tensor, t: Tensor, contexts: Tensor, details: Sequence[BlockDetail] | None = None
    ) -> Tensor:
        """As LatentDiffusion.apply_model, by the model's own UNet, through which gradients pass."""
        with self._autocast():
            return self.model.apply_model(x, t, {"c_crossattn": contexts, "details": details}).float()

    # ------------------------------------------------------------------------------------------ for a detail path

    def patch_features(self, reference: Tensor) -> Tensor:
        """CLIP's patch tokens of references (R,3,S,S), CLIP-normalised -> (R,M,width)."""
        return self._encode(self.cond_stage_model.patches, reference).float()

    def self_attention_inputs(self, x: Tensor, t: int, tokens: Tensor) -> list[Tensor]:
        """What every self-attention of the UNet sees, normalised, when it evaluates x (R,9,h,w) at timestep t with
        tokens (R,M,D): (R,N,C) for each block, where the model is."""
        x, tokens = x.to(self.device), tokens.to(self.device)
        fast = self.fast and tokens.shape[1] == 1
        blocks: Iterator[nn.Module] = (
            layers_of(self.unet, FastTransformerBlock)
            if fast
            else layers_of(self.model.model.diffusion_model, BasicTransformerBlock)
        )
        with self._fast_kernels(), self.unet_on_device(), recorded_outputs(block.norm1 for block in blocks) as inputs:
            if fast:
                noisy, inpaint = x[:, NOISY_LATENT].float(), x[:, INPAINT].float()
                shifts = self.shifts[t : t + 1].to(self.device)
                self.unet.forward(noisy, shifts, *self._prepare_edit(inpaint, tokens))  # its size differs: not compiled
            else:
                self.apply_model(x, torch.full(x.shape[:1], t, device=x.device), tokens)
        return [each.to(self.model.device, torch.float32) for each in inputs]

    def _copy_if_compiled(self, result: Tensor) -> Tensor:
        """A compiled network overwrites its result in its next call."""
        return result.clone() if self.compiled else result

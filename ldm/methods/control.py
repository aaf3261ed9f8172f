"""Control: a picture of edges, depth or poses says where things are, by a network of diffusers that was trained for
Stable Diffusion 1: a ControlNet (Zhang et al. 2023, arXiv 2302.05543) or a T2I-Adapter (Mou et al. 2023, arXiv
2302.08453). What it computes is added to features of the UNet, in both branches of guidance, as diffusers does.

| variable  | symbol                                                                                            |
|-----------|---------------------------------------------------------------------------------------------------|
| picture   | the control picture (b,3,H,W) in [0,1]                                                            |
| x         | the noisy latent alone (b,4,h,w); of the photo and the mask a ControlNet sees nothing             |
| contexts  | c and v (B,M,D); a ControlNet was trained with the 77 tokens of a text in their place             |
| residuals | what is added: by a ControlNet to the last channels, the skip, of the input of every block of the |
|           | decoder; by a T2I-Adapter to the output of the encoder at every resolution                        |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast.networks import Networks
from ldm.fast.region import WHOLE_PICTURE, Area
from ldm.models.diffusion.denoiser import Denoiser
from ldm.models.diffusion.sampling import Eps
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.modules.diffusionmodules.util import tile_batch
from ldm.modules.pretrained import load_diffusers
from ldm.util import UserError

EXAMPLE = "a ControlNet or T2I-Adapter for Stable Diffusion 1, such as lllyasviel/control_v11p_sd15_canny from the hub"


class Control:
    """network: a ControlNetModel or T2IAdapter; unets: those that may run, UNetModel and FastUNet."""

    def __init__(self, network: Any, unets: Sequence[Any]):
        self.network, self.unets = network.eval().requires_grad_(False), unets
        self.is_adapter = hasattr(network, "adapter")

    @classmethod
    def load(cls, folder: str | os.PathLike, networks: Networks) -> Control:
        """folder: as published, as safetensors. It stays where the model is. Raises UserError: a missing or damaged
        folder, a network for another model."""
        from diffusers import ControlNetModel, T2IAdapter

        network = load_diffusers("control", folder, EXAMPLE, ControlNetModel, T2IAdapter)
        model: Any = networks.model
        unet = model.model.diffusion_model
        for what, (own, needed) in _properties(network, unet, model.first_stage_model.factor).items():
            if own != needed:
                raise UserError(f"control {folder} has {what} {own}, but the model needs {needed}: use {EXAMPLE}")
        network.to(model.device, networks.dtype)
        return cls(network, [unet, networks.unet] if networks.fast else [unet])

    def steering(self, picture: Tensor, scale: float) -> Callable[[Denoiser], Denoiser]:
        """-> what makes a denoiser add residuals. scale: by which they are multiplied."""
        residuals = (self._adapter if self.is_adapter else self._controlnet)(picture.to(self.network.dtype), scale)

        def steer(denoiser: Denoiser) -> Denoiser:
            def steered(inpaint: Tensor, contexts: Tensor) -> Eps:
                eps = denoiser(inpaint, contexts)

                def steered_eps(x: Tensor, t: int) -> Tensor:
                    with self.added(residuals(x, t, contexts)):
                        return eps(x, t)

                return steered_eps

            return steered

        return steer

    def _adapter(self, picture: Tensor, scale: float) -> Callable[..., list[Tensor]]:
        grey = self.network.config.in_channels == 1
        features = [scale * each for each in self.network(picture.mean(dim=1, keepdim=True) if grey else picture)]
        return lambda x, t, contexts: features  # the same in every step

    def _controlnet(self, picture: Tensor, scale: float) -> Callable[..., list[Tensor]]:
        def residuals(x: Tensor, t: int, contexts: Tensor) -> list[Tensor]:
            own, seen = (tile_batch(each, len(contexts)).to(picture) for each in (x, picture))
            time = torch.full(own.shape[:1], t, device=own.device)
            skips, middle = self.network(own, time, contexts.to(own), seen, scale, return_dict=False)
            return [torch.cat([middle, skips[-1]], dim=1), *skips[-2::-1]]

        return residuals

    @contextmanager
    def added(self, residuals: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the UNets' layers add these."""
        hooks = []
        for unet in self.unets:
            blocks = _ends_of_levels(unet) if self.is_adapter else unet.output_blocks
            for block, own in zip(blocks, residuals, strict=True):
                if self.is_adapter:
                    hook = block[-1].register_forward_hook(lambda _, args, out, own=own: _plus(out, own, args))
                else:
                    hook = block[0].register_forward_pre_hook(
                        lambda _, args, own=own: (_plus(args[0], own, args), *args[1:])
                    )
                hooks.append(hook)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _plus(x: Tensor, residual: Tensor, args: Sequence[Any]) -> Tensor:
    """x (B,C,h,w) with the residual (b,c,...) of the whole picture on its last c channels. args: a layer's arguments,
    among which FastUNet gives the area that it computes."""
    area = next((each for each in args if isinstance(each, Area)), WHOLE_PICTURE)
    own = tile_batch(area.crop(residual), len(x)).to(x)
    return x + F.pad(own, (0, 0, 0, 0, x.shape[1] - own.shape[1], 0))


def _ends_of_levels(unet: Any) -> list[Any]:
    """The blocks of the encoder that are the last of their resolution."""
    blocks = list(unet.input_blocks)
    last = [isinstance(after[0], Downsample) for after in blocks[1:]] + [True]
    return [block for block, is_last in zip(blocks, last, strict=True) if is_last]


def adapter_channels(unet: Any) -> list[int]:
    """Of a T2I-Adapter's features, from the latent's resolution to the lowest."""
    return _channels(_ends_of_levels(unet))


def _channels(blocks: Sequence[nn.Module]) -> list[int]:
    return [[each for each in block.modules() if isinstance(each, nn.Conv2d)][-1].out_channels for block in blocks]


def _properties(network: Any, unet: Any, factor: int) -> dict[str, tuple[Any, Any]]:
    """What a network has -> its own, and what fits the model."""
    config = network.config
    if hasattr(network, "adapter"):
        return {
            "features of channels": (list(config.channels), adapter_channels(unet)),
            "a factor to the latent of": (config.downscale_factor, factor),
            "the layout of an XL": (config.adapter_type == "full_adapter_xl", False),
        }
    return {
        "tokens of width": (config.cross_attention_dim, unet.context_dim),
        "residuals of channels": (_channels(network.controlnet_down_blocks), _channels(unet.input_blocks)),
        "a latent of channels": (config.in_channels, unet.out[2].out_channels),
        "a picture of channels": (config.conditioning_channels, 3),
        "a factor to the latent of": (2 ** (len(config.conditioning_embedding_out_channels) - 1), factor),
        "further inputs": (config.addition_embed_type or config.class_embed_type or config.num_class_embeds, None),
        "pooled residuals": (config.global_pool_conditions, False),  # which say nothing of where
    }

"""Plug-and-Play diffusion features (Tumanyan et al. 2023, arXiv 2211.12572): while the edit is sampled, part of what
the UNet computes comes from a pass over the photo's own, inverted path.

From the residual block at a third of the decoder, its features; from there on, the queries and keys of self-attention:
where things are, and what belongs together. What they look like comes from the reference's token.

Prompt-to-Prompt would exchange the maps of cross-attention instead. With one key these are 1 everywhere, so there is
nothing to exchange; tests/methods/test_plug_and_play.py proves it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ldm.models.diffusion.sampling import Eps
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

ATTENTION_SHARE = 0.625  # of the steps with features, those with queries and keys as well (the paper's 25 of 40)


def feature_layers(unet: UNetModel) -> list[nn.Module]:
    """The residual block whose features are taken: layer 4 of Stable Diffusion's twelve."""
    block = unet.output_blocks[len(unet.output_blocks) // 3]
    return [module for module in block.modules() if isinstance(module, ResBlock)]


def attention_layers(unet: UNetModel) -> list[nn.Module]:
    """What makes queries and keys of the decoder's self-attention, from that layer on."""
    blocks = list(unet.output_blocks)[len(unet.output_blocks) // 3 :]
    found = [each for block in blocks for each in block.modules() if isinstance(each, BasicTransformerBlock)]
    return [layer for each in found for layer in (each.attn1.to_q, each.attn1.to_k)]


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Inside, every layer's output is kept."""
    kept: dict[nn.Module, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda layer, _, out: kept.__setitem__(layer, out)) for layer in layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replaced(outputs: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Inside, layers return these outputs, once for each branch of guidance."""

    def exchange(layer: nn.Module, _: object, out: Tensor) -> Tensor:
        own = outputs[layer]
        return own.repeat(out.shape[0] // own.shape[0], *[1] * (out.ndim - 1))

    hooks = [layer.register_forward_hook(exchange) for layer in outputs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plug_and_play_eps(
    unet: UNetModel, eps_src: Eps, eps: Eps, path: Sequence[Tensor], timesteps: Sequence[int], keep: float
) -> Eps:
    """eps(x, t) of the edit with features of the photo in the first, noisiest steps.

    eps_src, eps: of the photo's own token and of the reference's, both computed by this unet; path: of ddim_inversion
    with eps_src; timesteps: its, ascending; keep: the share of steps with features."""
    source = dict(zip(timesteps, path[1:], strict=True))
    order = {t: i / len(timesteps) for i, t in enumerate(reversed(timesteps))}

    def edited(x: Tensor, t: int) -> Tensor:
        layers = feature_layers(unet) if order[t] < keep else []
        layers += attention_layers(unet) if order[t] < ATTENTION_SHARE * keep else []
        if not layers:
            return eps(x, t)
        with recorded(layers) as outputs:
            eps_src(source[t], t)
        with replaced(outputs):
            return eps(x, t)

    return edited

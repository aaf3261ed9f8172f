"""What PyTorch takes from oneDNN without a public function for it, each with the public fallback beside it."""

from __future__ import annotations

import functools
import platform

import torch
import torch.nn.functional as F
from torch import Tensor

X86 = ("x86_64", "amd64")  # names of platform.machine
# (x, weight, bias, "none", [], "") -> F.linear(x, weight, bias); None in a PyTorch that does not have it
LINEAR_OPERATOR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than F.linear does on this CPU.

    F.linear takes MKL, which is made for Intel's CPUs; on AMD's oneDNN is faster. The operator is private, so it is
    tried once before it is used."""
    if LINEAR_OPERATOR is None:
        return False
    try:
        x = torch.ones(1, 1)
        works = LINEAR_OPERATOR(x, x, None, "none", [], "").item() == 1
        return works and "AMD" in torch.cpu.get_capabilities()["cpu_name"]
    except (AttributeError, KeyError, RuntimeError, TypeError):
        return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, by oneDNN where that is faster; no gradients."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and onednn_is_faster():
        return LINEAR_OPERATOR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU multiplies in bf16 (AVX512-BF16, AMX, Arm's extensions); False where PyTorch cannot tell.

    oneDNN also supports bf16 on x86 CPUs that have AVX-512 without BF16, by widening every number: there a step of
    training takes 3.6 times as long as in float32."""
    try:
        supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if platform.machine().lower() in X86:
            return supported and torch.cpu._is_avx512_bf16_supported()  # which CPUs with AMX have, too
        return supported
    except (AttributeError, RuntimeError):
        return False

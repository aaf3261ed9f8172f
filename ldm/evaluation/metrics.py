"""The metrics of an evaluation, by key: what each measures, and its group in the table.

The group `paper` contains the columns of the paper's tables, computed as there: FID and QS in the features of CLIP
ViT-B/32, not of Inception, and the CLIP score of the region. The group `beside` contains the metrics that other papers
call FID and KID, and others that the paper does not report. Other scorers may bring groups of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ldm.util import UserError

GROUPS = {
    "paper": "As in the paper's tables: FID and QS use CLIP's features",
    "beside": "Further metrics",
}


@dataclass(frozen=True)
class Metric:
    """better: "higher", "lower", or "1" for nearest to 1. network: the kind of Extractor that it needs. published: the
    released model's value. of_sets: whether it compares two sets of pictures, so that single cases have no value."""

    key: str
    name: str
    group: str
    better: Literal["higher", "lower", "1"]
    network: str | None
    meaning: str
    published: float | None = None
    of_sets: bool = False


METRICS = (
    Metric("fid_clip", "FID (CLIP)", "paper", "lower", "clip",
           "Fréchet distance between results and real pictures in CLIP's features; the paper uses ViT-B/32",
           3.18, of_sets=True),
    Metric("qs", "QS", "paper", "higher", "clip",
           "likelihood under a mixture of Gaussians fitted to real pictures, in the same features, 0 to 100", 77.80),
    Metric("clip_score", "CLIP score", "paper", "higher", "clip",
           "cosine of the painted region and the reference, in the same features, times 100", 84.97),
    Metric("fid_inception", "FID (Inception)", "beside", "lower", "inception",
           "FID as in most papers: the Fréchet distance in the features of Inception v3", of_sets=True),
    Metric("kid", "KID x 1000", "beside", "lower", "inception",
           "kernel distance in the same features; unbiased, so it suits few pictures better", of_sets=True),
    Metric("dino", "DINO similarity", "beside", "higher", "dino",
           "cosine of the painted region and the reference in the features of DINO, which distinguish instances"),
    Metric("psnr", "Background PSNR", "beside", "higher", None, "of the pixels to keep, against the source, in dB"),
    Metric("ssim", "Background SSIM", "beside", "higher", None, "structural similarity of the same pixels, at most 1"),
    Metric("lpips", "Background LPIPS", "beside", "lower", "lpips",
           "perceptual distance to the source, with the source's own pixels in the painted region"),
    Metric("seam", "Seam", "beside", "1", None,
           "steepness across the region's edge divided by that around it: 1 where the edge does not show"),
    Metric("copy_paste", "Copy and paste", "beside", "lower", None,
           "correlation of the painted region's pixels with the reference's: 1 where the reference is pasted"),
)  # fmt: skip


def select_metrics(metrics: Sequence[Metric], skip: Iterable[str], known: Collection[str]) -> list[Metric]:
    """The metrics whose keys are not skipped. known: all keys that may be skipped, even if `metrics` lacks them.
    Raises UserError: an unknown key, nothing left."""
    skip = list(skip)
    for key in skip:
        if key not in known:
            raise UserError(f"--skip {key} is no metric: use one of {', '.join(known)}")
    selected = [metric for metric in metrics if metric.key not in skip]
    if not selected:
        raise UserError("--skip leaves nothing to measure: skip fewer metrics")
    return selected

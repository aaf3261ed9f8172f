"""Who edits how fast: this implementation, with and without what makes it fast, and diffusers' pipeline, in turn."""

from __future__ import annotations

import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ldm.checkpoint.diffusers import to_diffusers
from ldm.checkpoint.load import add_position_ids
from ldm.editing.inputs import Inputs, stack
from ldm.fast.convert import PhaseUpsample
from ldm.fast.memory import keep_memory
from ldm.fast.onednn import LINEAR_OPERATOR
from ldm.fast.unet import FastResBlock, FastSelfAttention, FastTransformer, prepare_edit
from ldm.models.diffusion.conditioning import inpaint_channels, reference_token, unconditional_token
from ldm.models.diffusion.denoiser import guided_eps
from ldm.modules.attention import FeedForward
from ldm.modules.diffusionmodules.openaimodel import Downsample
from ldm.pipeline import PaintByExample
from ldm.util import UserError, instantiate_from_config, load_config

SCALE, STEPS, T = 5.0, 50, 501
EVALUATIONS = STEPS + 1  # PLMS evaluates its first step twice; diffusers' PNDM does, too
RECTANGLE = "guided step, rectangle"  # around the region, as every other step of --preset fast is
PARTS = {  # -> how often in an edit
    "reference": 1,
    "VAE encode": 1,
    "guided step": EVALUATIONS,
    RECTANGLE: 0,
    "VAE decode": 1,
}
Parts = dict[str, Callable[[], Tensor]]


def random_model(config: Any, device: torch.device) -> nn.Module:
    """The config's LatentDiffusion with random weights, none of them zero, eval mode."""
    torch.manual_seed(0)
    with device:
        model = instantiate_from_config(load_config(config)["model"])
    for p in model.parameters():
        if not p.any():  # what starts as zero would hide most of the network
            torch.nn.init.normal_(p, std=0.02)
    return model.to(device).eval().requires_grad_(False)


def pictures(size: int, batch: int = 1) -> dict[str, list[Image.Image]]:
    """A photo, a mask (255 = paint) of a fifth of it, a reference, size x size pixels, for each of `batch` edits."""
    rng = np.random.default_rng(0)

    def soft(count: int) -> list[Image.Image]:
        small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        return [Image.fromarray(s).resize((size, size), Image.Resampling.BICUBIC) for s in small]

    mask = Image.new("L", (size, size))
    first, side = round(0.34 * size), round(0.2**0.5 * size)
    mask.paste(255, (first, first, first + side, first + side))
    return {"image": soft(batch), "mask": [mask] * batch, "reference": soft(batch)}


class Ours:
    """precision, fast, compiled: of PaintByExample."""

    def __init__(self, model: nn.Module, precision: str, fast: bool = True, compiled: bool = False):
        words = [precision, *(["compiled"] if compiled else []), *([] if fast else ["plain"])]
        self.name = f"ours, {', '.join(words)}"
        self.pipeline = PaintByExample(model, precision, fast, compiled)

    @torch.no_grad()
    def parts(self, inputs: Inputs, x: Tensor, z: Tensor) -> Parts:
        """x, z (B,4,h,w): the noisy latent of the step and the latent to decode. -> a function for each of PARTS, of a
        rectangle where only one is computed."""
        networks, device = self.pipeline.networks, self.pipeline.device
        image, reference = inputs.inpaint_image.to(device), inputs.reference.to(device)
        inpaint = inpaint_channels(networks, image, inputs.mask.to(device), torch.zeros_like(x))
        context, uncond = reference_token(networks, reference), unconditional_token(networks, len(x))
        eps = guided_eps(networks.denoiser, inpaint, context, uncond, SCALE)
        parts = {}
        if networks.rectangle(inpaint[:, -1:], sys.maxsize):
            once = functools.partial(networks.denoiser, refresh=sys.maxsize)
            follows = guided_eps(once, inpaint, context, uncond, SCALE)
            follows(x, T)  # the whole; from now on the rectangle
            parts[RECTANGLE] = lambda: follows(x, T)
        return parts | {
            "reference": lambda: reference_token(networks, reference),
            "VAE encode": lambda: networks.encode_first_stage(image).mean,
            "guided step": lambda: eps(x, T),
            "VAE decode": lambda: networks.decode_first_stage(z),
        }

    def edit(self, given: Mapping[str, list[Image.Image]], **how: Any) -> list[Image.Image]:
        """The whole call, pictures to pictures."""
        width, height = given["image"][0].size
        how = {
            "height": height,
            "width": width,
            "context": "photo",
            "batch_size": len(given["image"]),
            "progress": False,
            **how,
        }
        return self.pipeline(**given, scale=SCALE, **how)


class Diffusers:
    """diffusers' PaintByExamplePipeline with the model's weights, through our converter."""

    def __init__(self, model: nn.Module, precision: str, compiled: bool = False):
        import diffusers
        from transformers import CLIPImageProcessor, CLIPVisionConfig

        self.name = f"diffusers, {precision}{', compiled' if compiled else ''}"
        self.dtype = {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        files = to_diffusers(add_position_ids(dict(model.state_dict())), model)

        def filled(network: nn.Module, folder: str, file: str = "diffusion_pytorch_model") -> nn.Module:
            own, weights = network.state_dict(), files.weights[f"{folder}/{file}.safetensors"]
            # transformers 5 calls CLIP's weights so; from_pretrained would rename them
            weights = {n if n in own else n.replace(".vision_model.", "."): t for n, t in weights.items()}
            network.load_state_dict(weights, assign=True)
            return network.to(model.device, self.dtype).eval().requires_grad_(False)

        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(files.configs["unet/config.json"])
            vae = diffusers.AutoencoderKL.from_config(files.configs["vae/config.json"])
        encoder = files.configs["image_encoder/config.json"]
        pipeline = diffusers.PaintByExamplePipeline
        encoder_class = sys.modules[pipeline.__module__].PaintByExampleImageEncoder  # its place has moved
        encoder = encoder_class(CLIPVisionConfig(**encoder), proj_size=encoder["projection_dim"])
        processor = CLIPImageProcessor(**files.configs["feature_extractor/preprocessor_config.json"])
        self.pipeline = pipeline(
            filled(vae, "vae"),
            filled(encoder, "image_encoder", "model"),
            filled(unet, "unet"),
            diffusers.PNDMScheduler.from_config(files.configs["scheduler/scheduler_config.json"]),
            None,
            processor,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self.pipeline.unet.to(memory_format=torch.channels_last)
            self.pipeline.unet.compile(mode="reduce-overhead", dynamic=False)
            self.pipeline.vae.decoder.compile(mode="reduce-overhead", dynamic=False)
            self.pipeline.vae.encoder.compile(mode="reduce-overhead", dynamic=False)

    @torch.no_grad()
    def parts(self, inputs: Inputs, x: Tensor, z: Tensor) -> Parts:
        """As Ours.parts."""
        pipe, device = self.pipeline, self.pipeline.device
        image, reference = (t.to(device, self.dtype) for t in (inputs.inpaint_image, inputs.reference))
        factor = pipe.vae.config.scaling_factor
        keep = nn.functional.interpolate(inputs.mask.to(device), x.shape[-2:], mode="bilinear")
        latent = pipe.vae.encode(image).latent_dist.mean.float() * factor
        inpaint = torch.cat([latent, keep], dim=1).repeat(2, 1, 1, 1)
        context, v = pipe.image_encoder(reference, return_uncond_vector=True)
        contexts = torch.cat([v.repeat(len(x), 1, 1), context]).to(self.dtype)
        t = torch.tensor(T, device=device)

        def step() -> Tensor:
            both = torch.cat([x.repeat(2, 1, 1, 1), inpaint], dim=1).to(self.dtype)
            e_uncond, e_cond = pipe.unet(both, t, contexts, return_dict=False)[0].float().chunk(2)
            return e_uncond + SCALE * (e_cond - e_uncond)

        return {
            "reference": lambda: pipe.image_encoder(reference).float(),
            "VAE encode": lambda: pipe.vae.encode(image).latent_dist.mean.float(),
            "guided step": step,
            "VAE decode": lambda: pipe.vae.decode(z.to(self.dtype) / factor).sample.float(),
        }

    def edit(self, given: Mapping[str, list[Image.Image]]) -> list[Image.Image]:
        """The whole call, pictures to pictures."""
        return self.pipeline(
            example_image=list(given["reference"]),
            image=list(given["image"]),
            mask_image=list(given["mask"]),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
        ).images


# ------------------------------------------------------------------------------------------ measuring


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Of one call, the device's work included, and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


@torch.no_grad()
def alternating(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, what: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """All of them in turn, forwards and backwards, `rounds` times after one (on a GPU three) that is not counted ->
    medians, seconds, and each one's first result."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for _ in range(3 if device.type == "cuda" else 1):
        for name, function in functions.items():
            result = seconds(function, device)[1]
            if name not in results:  # a copy: what is compiled writes its next result over it
                results[name] = result.clone() if isinstance(result, Tensor) else result
    for i in tqdm(range(rounds), desc=what, unit="round"):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:  # what the others leave in caches falls to each alike
            times[name].append(seconds(functions[name], device)[0])
    return {name: statistics.median(each) for name, each in times.items()}, results


def compare_parts(contestants: list[Any], size: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each part and contestant: seconds, how many times as fast as the first contestant, and the difference
    to the first of ours that is full and plain: largest, and root mean square relative to the result's."""
    ours = next(c for c in contestants if isinstance(c, Ours))
    edit, device = ours.pipeline, ours.pipeline.device
    given = pictures(size, batch)
    inputs = stack([edit.prepare(*each, size, size) for each in zip(*given.values(), strict=True)])
    side = size // edit.model.first_stage_model.factor
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(batch, edit.model.channels, side, side, generator=generator).to(device) for _ in range(2))
    parts = {c.name: c.parts(inputs, x, z) for c in contestants}
    rows = []
    for part in PARTS:
        who = {name: own[part] for name, own in parts.items() if part in own}
        times, results = alternating(who, rounds, device, part)
        if part != RECTANGLE:  # which is compared with the whole
            first, exact = times[contestants[0].name], results[ours.name].float()
        for name, spent in times.items():
            error = results[name].float() - exact
            rows.append(
                {
                    "part": part,
                    "who": name,
                    "seconds": spent,
                    "ratio": first / spent,
                    "max_difference": error.abs().max().item(),
                    "rms_difference": (error.norm() / exact.norm()).item(),
                }
            )
    return rows


def sum_of_parts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of compare_parts -> an edit of 50 PLMS steps, put together from them."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["who"]] = totals.get(row["who"], 0.0) + PARTS[row["part"]] * row["seconds"]
    first = next(iter(totals.values()))
    return [
        {"part": f"edit, {STEPS} steps, from its parts", "who": name, "seconds": total, "ratio": first / total}
        for name, total in totals.items()
    ]


def compare_edits(calls: Mapping[str, Callable[[], Any]], batch: int, rounds: int, device: torch.device) -> list[Any]:
    """Whole edits, pictures to pictures, as the callers have them."""
    times, _ = alternating(calls, rounds, device, f"edits, {batch} at once")
    first = next(iter(times.values()))
    return [
        {"part": f"edit, measured, {batch} at once", "who": name, "seconds": spent, "ratio": first / spent}
        | {"edits_per_second": batch / spent}
        for name, spent in times.items()
    ]


def _steps(connection: Any, keep: bool, config: str, size: int, precision: str, threads: int) -> None:
    """A process that answers each message with the seconds of a guided step."""
    if keep:
        keep_memory()
    torch.set_num_threads(threads)
    ours = Ours(random_model(config, torch.device("cpu")), precision)
    x = torch.randn(1, ours.pipeline.model.channels, *2 * (size // ours.pipeline.model.first_stage_model.factor,))
    given = pictures(size)
    inputs = ours.pipeline.prepare(*(column[0] for column in given.values()), size, size)
    step = ours.parts(inputs, x, x)["guided step"]
    connection.send("ready")
    while connection.recv():
        connection.send(seconds(step, torch.device("cpu"))[0])


def compare_allocators(config: str, size: int, precisions: list[str], rounds: int) -> list[dict[str, Any]]:
    """A guided step on the CPU in two processes in turn, one of which keeps its memory (util.keep_memory)."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for precision in precisions:
        calls, processes = {}, []
        for name, keep in (("as the C library does", False), ("memory kept", True)):
            here, there = context.Pipe()
            how = (there, keep, config, size, precision, torch.get_num_threads())
            processes.append((context.Process(target=_steps, args=how, daemon=True), here))
            processes[-1][0].start()
            here.recv()
            calls[name] = here
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds + 1):
            for name, connection in calls.items():
                connection.send(True)
                spent = connection.recv()
                times[name] += [spent] if i else []
        for process, connection in processes:
            connection.send(False)
            process.join()
        medians = {name: statistics.median(each) for name, each in times.items()}
        first = next(iter(medians.values()))
        rows += [
            {"part": f"guided step, {precision}", "who": name, "seconds": spent, "ratio": first / spent}
            for name, spent in medians.items()
        ]
    return rows


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a large matrix product: operations per second."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(seconds(lambda: a @ a, device)[0] for _ in range(8))


# ------------------------------------------------------------------------------------------ where the time goes

KINDS = {  # of the UNet's layers; the first that fits
    "residual blocks": FastResBlock,
    "self-attention": FastSelfAttention,
    "feed-forward": FeedForward,
    "up": PhaseUpsample,
    "down": Downsample,
    "projections, norms": FastTransformer,  # less what is inside
}


FLOPS = {  # of what PyTorch has no formula for
    LINEAR_OPERATOR: lambda x, w, *_, **__: 2 * math.prod(x) * w[0],
}


@torch.no_grad()
def profile_step(edit: PaintByExample, size: int, trace: str) -> list[dict[str, Any]]:
    """One guided step of the fast UNet, not compiled, layer by layer: operations by formula, seconds, and the share of
    a matrix product's rate. Writes a trace for chrome://tracing or Perfetto."""
    if not edit.networks.fast:
        raise UserError("--profile is of the fast networks; leave --plain out")
    unet, device = edit.networks.unet, edit.device
    side = size // edit.model.first_stage_model.factor
    x, inpaint = (torch.randn(1, channels, side, side, device=device) for channels in (4, 5))
    contexts = torch.randn(2, 1, edit.model.model.diffusion_model.context_dim, device=device)
    fixed, vectors = prepare_edit(edit.model.model.diffusion_model, inpaint, contexts, edit.networks.dtype)

    def step() -> Tensor:
        return unet(x, edit.networks.shifts[T : T + 1], fixed, vectors)

    for _ in range(2):
        step()
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        step()
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    spent: dict[str, float] = {}
    handles = []
    for name, module in unet.named_modules():
        if isinstance(module, tuple(KINDS.values())):
            started: list[float] = []

            def before(*_: Any, started: list[float] = started) -> None:
                started.append(seconds(lambda: None, device)[0] + time.perf_counter())

            def after(*_: Any, name: str = name, started: list[float] = started) -> None:
                seconds(lambda: None, device)
                spent[name] = time.perf_counter() - started.pop()

            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    total, _ = seconds(step, device)
    for handle in handles:
        handle.remove()
    with torch.profiler.profile() as profiler:
        step()
        seconds(lambda: None, device)
    profiler.export_chrome_trace(trace)

    modules = dict(unet.named_modules())
    rows = []
    for kind, cls in KINDS.items():
        names = [name for name in spent if isinstance(modules[name], cls)]
        took = sum(spent[name] for name in names)
        flops = sum(counts.get(f"{type(unet).__name__}.{name}", 0) for name in names)
        if cls is FastTransformer:
            inner = [n for n in spent if isinstance(modules[n], (FastSelfAttention, FeedForward))]
            took -= sum(spent[n] for n in inner)
            flops -= sum(counts.get(f"{type(unet).__name__}.{n}", 0) for n in inner)
        rows.append({"part": kind, "seconds": took, "flops": flops})
    step_row = {"part": "step", "seconds": total, "flops": counts["Global"]}
    rest = {key: step_row[key] - sum(row[key] for row in rows) for key in ("seconds", "flops")}
    rows += [{"part": "the rest", **rest}, step_row]
    peak = peak_flops(device, edit.networks.dtype)
    return [row | {"share_of_peak": row["flops"] / row["seconds"] / peak} for row in rows]

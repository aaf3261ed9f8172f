"""Edit a photo by example: repaint the mask's white region of a picture with the object of a reference picture.

    python scripts/inference.py --image_path photo.jpg --mask_path mask.png --reference_path object.jpg --scale 5
    python scripts/inference.py --image_path photo.jpg --box 100,80,300,260 --reference_path object.jpg
    python scripts/inference.py --from results/results/photo_321.png --seed 322

Several regions, each with its reference, are painted one after the other: --mask_path a.png --reference_path a.jpg
--box 100,80,300,260 --reference_path b.jpg front.jpg (the latter two are pictures of one object).

Writes to --outdir, with <name> the photo's file name without its ending:
    results/<name>_<seed>.png                         the whole photo, edited, one per seed, with its settings inside
    source/<name>_<seed>_{GT,mask,inpaint,ref}.png    what the model was given: the window of the photo, its mask, the
                                                      window without the region, the reference; _2_GT ... of region 2
    grid/grid-<name>_<seed>.png                       photo, masked photo, references and edits side by side"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from ldm.cli.command import command
from ldm.cli.edit_flags import arguments, check_editing, read_references, sampling_asked, settings
from ldm.cli.flags import loading_of
from ldm.editing.regions import mask_of
from ldm.fast.memory import keep_memory
from ldm.files import staging
from ldm.util import UserError


def check_numbers(opt: argparse.Namespace) -> dict[str, Any]:
    """What can be said before anything is loaded. -> how to sample."""
    for name in ("n_samples", "n_iter"):
        if not 1 <= getattr(opt, name) <= 1000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use 1 to 1000")
    if opt.n_rows < 0:
        raise UserError(f"--n_rows {opt.n_rows} is out of range; use 1 or more")
    if opt.skip_save and opt.skip_grid:
        raise UserError("--skip_save and --skip_grid together would write nothing; give one of them")
    return sampling_asked(opt)


def check_outdir(outdir: Path) -> None:
    """Fail before the work, not after it, if nothing can be written there; leave no trace."""
    try:
        existing = next(folder for folder in (outdir, *outdir.absolute().parents) if folder.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".partial-", dir=existing))
        parts = [outdir / part for part in ("results", "source", "grid")]
        blocked = [part.name for part in parts if part.exists() and not part.is_dir()]
    except OSError as error:
        raise UserError(f"--outdir {outdir}: cannot be written to ({error.strerror}); name another folder") from error
    if blocked:
        raise UserError(f"--outdir {outdir}: has a file named {blocked[0]}; name another folder")


def peak_memory() -> str:
    """Most memory this process has held: of the GPU if there is one in use, else of the machine."""
    import torch

    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return f"{peak / 1e9:.1f} GB on the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


@command
def main() -> None:
    opt = arguments(sys.argv[1:], __doc__)
    sampling = check_numbers(opt)
    outdir = Path(opt.outdir)
    check_outdir(outdir)
    keep_memory()

    from ldm.editing.metadata import save_with_settings
    from ldm.editing.watermark import embed
    from ldm.images import grid, open_picture, upright_rgb

    image = open_picture(opt.image_path, "image")  # what can be told before gigabytes are read, is
    check_editing(opt, image.size)
    masks = [mask_of(region, image, opt.grow, opt.invert) for region in opt.regions]
    references = read_references(opt)
    photo = upright_rgb(image)

    import torch

    from ldm.checkpoint.locate import choose_model
    from ldm.conventions import mask_to_image, reference_to_image, tensor_to_image
    from ldm.editing.checks import check_request
    from ldm.pipeline import PaintByExample

    seeds = range(opt.seed, opt.seed + opt.n_iter * opt.n_samples)
    start = getattr(opt, "start", None)
    check_request(seeds=[*seeds, *([] if start is None else [start])], **sampling)
    config, ckpt = choose_model(opt.config, opt.ckpt, adapted=opt.lora is not None)
    edit = PaintByExample.load(config, ckpt, **loading_of(opt))
    for flag, given, actual in (
        ("C", opt.C, edit.model.channels),
        ("f", opt.f, edit.model.first_stage_model.factor),
    ):
        if given not in (None, actual):
            raise UserError(f"--{flag} {given} does not fit the model; leave it out, or use {actual}")

    name = Path(opt.image_path).stem
    kept = settings(opt, sampling, precision=edit.precision, checkpoint=Path(ckpt).name)
    feather = 0.0 if opt.feather is None and {"alpha": True} in opt.regions else opt.feather  # nothing to blend with
    sources: dict[str, Image.Image] = {}
    thumbnail = edit.size_for(photo, opt.H, opt.W)[::-1]
    painted = functools.reduce(ImageChops.lighter, masks)
    cells = [photo, Image.composite(Image.new("RGB", photo.size, "gray"), photo, painted)]
    ends: list[float] = []  # of each step, seconds
    begin = time.perf_counter()

    def paint(pictures: list[Image.Image], batch: range, number: int) -> list[Image.Image]:
        """Region `number`, from 0 on, of each picture, with a seed each."""
        how = {"context": opt.context, "reference_fit": opt.reference_fit}
        alike = 1 if number == 0 else len(pictures)  # the photo itself, or what became of it
        plans = [edit.plan(p, masks[number], references[number], opt.H, opt.W, **how) for p in pictures[:alike]]
        place, inputs = plans[0].place, plans[0].inputs
        height, width = inputs.image.shape[-2:]
        if batch[0] == opt.seed:
            share, x0, y0, x1, y1 = 1 - inputs.mask.mean().item(), *place.window
            print(f"editing {x1 - x0} x {y1 - y0} pixels of the photo at {width} x {height} on {edit.device},"
                  f" {edit.precision} precision; the mask paints {share:.0%} of them", file=sys.stderr)  # fmt: skip
            parts = {
                "GT": tensor_to_image(inputs.image[0]),
                "mask": mask_to_image(inputs.mask[0]),
                "inpaint": tensor_to_image(inputs.inpaint_image[0]),
                "ref": reference_to_image(inputs.reference[0]),
            }
            cells.append(parts["ref"])
            sources.update({f"{number + 1}_{kind}" if number else kind: part for kind, part in parts.items()})
        code = None
        if start is not None:
            code = torch.stack([edit.start(start + i, height, width)[1] for i in range(len(batch))])
        return edit.make(
            plans * (len(pictures) // alike),
            batch,
            len(batch),
            background=opt.background,
            feather=feather,
            x_T=code,
            callback=lambda step: ends.append(time.perf_counter()),
            blend_latents=opt.blend_latents,
            **sampling,
        )

    for iteration in range(opt.n_iter):
        batch = seeds[iteration * opt.n_samples : (iteration + 1) * opt.n_samples]
        pictures = [photo] * len(batch)
        for number in range(len(masks)):
            pictures = paint(pictures, batch, number)
        if opt.watermark:
            pictures = [embed(picture) for picture in pictures]
        results = {f"{name}_{seed}.png": picture for seed, picture in zip(batch, pictures, strict=True)}
        cells += pictures
        with staging(outdir) as folder:
            if not opt.skip_save:
                (folder / "results").mkdir()
                for i, (file, seed) in enumerate(zip(results, batch, strict=True)):
                    own = {"seed": seed, "start": None if start is None else start + i}
                    save_with_settings(results[file], folder / "results" / file, kept | own)
            if not opt.skip_save and iteration == 0:
                (folder / "source").mkdir()
                for kind, picture in sources.items():
                    picture.save(folder / "source" / f"{name}_{opt.seed}_{kind}.png")
            if not opt.skip_grid and iteration == opt.n_iter - 1:
                (folder / "grid").mkdir()
                sheet = grid([cell.resize(thumbnail) for cell in cells], opt.n_rows or -(-len(cells) // 4))
                sheet.save(folder / "grid" / f"grid-{name}_{opt.seed}.png")
        if not opt.skip_save:
            print("\n".join(f"wrote {outdir / 'results' / file}" for file in results))

    if not opt.skip_grid:
        print(f"wrote {outdir / 'grid' / f'grid-{name}_{opt.seed}.png'}")
    each = statistics.median(b - a for a, b in pairwise([begin, *ends])) if ends else 0
    took = f"{len(ends)} steps of {each:.2f} s, {time.perf_counter() - begin:.0f} s in all"
    print(f"{took}, peak memory {peak_memory()}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Edit a photo by example: repaint the mask's white region of a picture with the object of a reference picture.

    python scripts/inference.py --image_path photo.jpg --mask_path mask.png --reference_path object.jpg --scale 5

Writes to --outdir, with <name> the photo's file name without its ending:
    results/<name>_<seed>.png                         the edited picture, one per seed
    source/<name>_<seed>_{GT,mask,inpaint,ref}.png    what the model was given: photo, mask, masked photo, reference
    grid/grid-<name>_<seed>.png                       photo, masked photo, reference and edits side by side"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from ldm.arguments import add_model, add_sampling, sampler_of
from ldm.util import UserError, command, staging


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = p.add_argument_group("pictures")
    files.add_argument("--image_path", required=True, help="the photo; any size and kind")
    files.add_argument("--mask_path", required=True, help="white (255) where to paint; same proportions as the photo")
    files.add_argument("--reference_path", required=True, help="a picture of the object; it is squashed to a square")
    files.add_argument("--outdir", default="results", help="folder for the results (default: results)")
    files.add_argument("--skip_grid", action="store_true", help="write no grid")
    files.add_argument("--skip_save", action="store_true", help="write no single pictures, only the grid")
    files.add_argument("--n_rows", type=int, default=0, help="rows of the grid (default: as many as rows of four need)")

    how = add_sampling(p)
    how.add_argument("--seed", type=int, default=321, help="of the first picture; the others count up from it (321)")
    how.add_argument("--n_samples", type=int, default=1, help="pictures made in one batch (1)")
    how.add_argument("--n_iter", type=int, default=1, help="batches (1)")
    how.add_argument("--fixed_code", action="store_true", help="start every batch from the first one's noise")
    how.add_argument("--H", type=int, help="height of the edit, pixels (default: the photo's shape at the model's size,"
                     " 512 x 512 for a square photo)")  # fmt: skip
    how.add_argument("--W", type=int, help="width of the edit, pixels")

    which = add_model(p)
    which.add_argument("--C", type=int, help="latent channels; must be the model's (4)")
    which.add_argument("--f", type=int, help="downsampling factor; must be the model's (8)")
    return p


def check_numbers(opt: argparse.Namespace) -> str:
    """What can be said before anything is loaded. -> the sampler's name."""
    for name in ("n_samples", "n_iter"):
        if not 1 <= getattr(opt, name) <= 1000:
            raise UserError(f"--{name} {getattr(opt, name)} is out of range; use 1 to 1000")
    if opt.n_rows < 0:
        raise UserError(f"--n_rows {opt.n_rows} is out of range; use 1 or more")
    if opt.skip_save and opt.skip_grid:
        raise UserError("--skip_save and --skip_grid together would write nothing; give one of them")
    return sampler_of(opt)


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


def settings(opt: argparse.Namespace, sampler: str, seed: int):
    """What made a picture, as PNG text."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    ckpt = Path(opt.ckpt).name if opt.ckpt else "released model"
    values = {"seed": seed, "scale": opt.scale, "sampler": sampler, "steps": opt.ddim_steps, "eta": opt.ddim_eta}
    values["checkpoint"] = ckpt
    if opt.lora:
        values |= {"lora": Path(opt.lora).name, "lora_scale": opt.lora_scale}
    text = ", ".join(f"{key} {value}" for key, value in values.items())
    info.add_itxt("paint-by-example", text)
    return info


@command
def main() -> None:
    opt = parser().parse_args()
    sampler = check_numbers(opt)
    outdir = Path(opt.outdir)
    check_outdir(outdir)

    from ldm.images import grid, open_picture, upright_mask

    image = open_picture(opt.image_path, "image")
    mask = open_picture(opt.mask_path, "mask")
    reference = open_picture(opt.reference_path, "reference")
    upright_mask(mask, image)  # what can be told before gigabytes are read, is

    import torch

    from ldm.conventions import mask_to_image, reference_to_image, tensor_to_image
    from ldm.pipeline import PaintByExample, check_request, stack

    seeds = range(opt.seed, opt.seed + opt.n_iter * opt.n_samples)
    check_request(opt.scale, opt.ddim_steps, sampler, opt.ddim_eta, seeds)
    edit = PaintByExample.load(opt.config, opt.ckpt, opt.device, opt.precision, opt.lora, opt.lora_scale)
    for flag, given, actual in (
        ("C", opt.C, edit.model.channels),
        ("f", opt.f, edit.model.first_stage_model.factor),
    ):
        if given not in (None, actual):
            raise UserError(f"--{flag} {given} does not fit the model; leave it out, or use {actual}")

    inputs = edit.prepare(image, mask, reference, opt.H, opt.W)
    height, width = inputs.image.shape[-2:]
    share = 1 - inputs.mask.mean().item()
    place = f"{width} x {height} on {edit.device}, {edit.precision} precision"
    print(f"editing at {place}; the mask paints {share:.0%} of the picture", file=sys.stderr)

    name = Path(opt.image_path).stem
    sources = {
        "GT": tensor_to_image(inputs.image[0]),
        "mask": mask_to_image(inputs.mask[0]),
        "inpaint": tensor_to_image(inputs.inpaint_image[0]),
        "ref": reference_to_image(inputs.reference[0]),
    }
    cells = [sources["GT"], sources["inpaint"], sources["ref"].resize((width, height))]
    code = None
    if opt.fixed_code:
        code = torch.stack([edit.start(opt.seed + i, height, width)[1] for i in range(opt.n_samples)])

    ends: list[float] = []  # of each step, seconds
    begin = time.perf_counter()
    for iteration in range(opt.n_iter):
        batch = seeds[iteration * opt.n_samples : (iteration + 1) * opt.n_samples]
        tensors = edit.sample(
            stack([inputs] * opt.n_samples),
            batch,
            opt.scale,
            opt.ddim_steps,
            sampler,
            opt.ddim_eta,
            x_T=code,
            callback=lambda step: ends.append(time.perf_counter()),
        )
        results = {f"{name}_{seed}.png": tensor_to_image(tensor) for seed, tensor in zip(batch, tensors, strict=True)}
        cells += results.values()
        with staging(outdir) as folder:
            if not opt.skip_save:
                (folder / "results").mkdir()
                for file, seed in zip(results, batch, strict=True):
                    results[file].save(folder / "results" / file, pnginfo=settings(opt, sampler, seed))
            if not opt.skip_save and iteration == 0:
                (folder / "source").mkdir()
                for kind, picture in sources.items():
                    picture.save(folder / "source" / f"{name}_{opt.seed}_{kind}.png")
            if not opt.skip_grid and iteration == opt.n_iter - 1:
                (folder / "grid").mkdir()
                sheet = grid(cells, opt.n_rows or -(-len(cells) // 4))
                sheet.save(folder / "grid" / f"grid-{name}_{opt.seed}.png")
        if not opt.skip_save:
            print("\n".join(f"wrote {outdir / 'results' / file}" for file in results))

    if not opt.skip_grid:
        print(f"wrote {outdir / 'grid' / f'grid-{name}_{opt.seed}.png'}")
    each = statistics.median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else ends[0] - begin
    took = f"{len(ends)} steps of {each:.2f} s, {time.perf_counter() - begin:.0f} s in all"
    print(f"{took}, peak memory {peak_memory()}", file=sys.stderr)


if __name__ == "__main__":
    main()

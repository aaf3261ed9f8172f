"""Edit a photo by example: repaint the mask's white region of a picture with the object of a reference picture.

    paint-by-example edit --image_path photo.jpg --mask_path mask.png --reference_path object.jpg --scale 5
    paint-by-example edit --image_path photo.jpg --box 100,80,300,260 --reference_path object.jpg
    paint-by-example edit --from results/photo_321.png --seed 322

Several regions, each with its reference, are painted one after the other, or --together: --mask_path a.png
--reference_path a.jpg --box 100,80,300,260 --reference_path b.jpg front.jpg (the last two show the same object).

Writes to --outdir (results), where <name> is the photo's file name without its suffix:
    <name>_<seed>.png                                 the whole photo, edited, one per seed, with its settings inside;
                                                      in the folder results of an --outdir of another name
    source/<name>_<seed>_{GT,mask,inpaint,ref}.png    what the model was given: the window of the photo, its mask, the
                                                      window without the region, the reference; _2_GT ... of region 2
    grid/grid-<name>_<seed>.png                       photo, masked photo, references and edits side by side
The files of an earlier edit of this name and seed, if they differ, are kept as <name>_<seed>-1.png and so on.

scripts/inference.py is the same command."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import edit_flags
from ldm.cli.command import command
from ldm.cli.edit_flags import PRESET_SETTINGS, SETTINGS
from ldm.cli.flags import blending_from, check_range, loading_from, placement_from, selection_from
from ldm.editing.names import FLAG_NAMES
from ldm.fast import memory
from ldm.files import short_stem, staging
from ldm.storage import Place, Url, place
from ldm.util import UserError

if TYPE_CHECKING:
    from PIL import Image

    from ldm.editing.best import Choice
    from ldm.editing.inputs import PlannedEdit
    from ldm.editing.marked import MarkedPhoto
    from ldm.editing.options import Sampling
    from ldm.pipeline import PaintByExample

CELL = 384  # shortest length of the longer side of a picture in the grid, pixels


def parser() -> argparse.ArgumentParser:
    return edit_flags.parser(__doc__)


def check_numbers(opt: argparse.Namespace) -> None:
    """Raises UserError for a number of pictures or rows that is out of range, if nothing would be written, or if
    a flag lacks what belongs to it."""
    check_range(opt, "n_samples")
    check_range(opt, "n_iter")
    if opt.n_rows < 0:
        raise UserError(f"--n_rows {opt.n_rows} is out of range: use 1 or more, or 0 for rows of four")
    if opt.best > 1 and opt.fixed_code:
        raise UserError("--best tries other noise and --fixed_code keeps it: give one of them")
    if (opt.control is None) != (opt.control_image is None):
        raise UserError("--control and --control_image, a network and its picture, belong together: give both, or none")
    if opt.skip_save and opt.skip_grid:
        raise UserError("--skip_save and --skip_grid together would write nothing: give one of them")


def results_folder(outdir: Place) -> Place:
    """A folder of results is not put into another one: the published layout has <outdir>/results, source and grid."""
    return outdir if outdir.name == "results" else outdir / "results"


def check_outdir(outdir: Place) -> None:
    """Raises UserError if the folder cannot be written to. Called before the work; leaves nothing behind."""
    if isinstance(outdir, Url):
        outdir.check_writable()
        return
    try:
        existing = next(folder for folder in (outdir, *outdir.absolute().parents) if folder.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".partial-", dir=existing))
        parts = [results_folder(outdir), outdir / "source", outdir / "grid"]
        blocked = [part.name for part in parts if part.exists() and not part.is_dir()]
    except OSError as error:
        raise UserError(f"--outdir {outdir} cannot be written to ({error.strerror}): choose another folder") from error
    if blocked:
        raise UserError(f"--outdir {outdir} contains a file named {blocked[0]}: choose another folder")


def read_pictures(opt: argparse.Namespace) -> MarkedPhoto:
    """The photo, its regions and their references. Raises UserError."""
    from ldm.editing.marked import MarkedPhoto
    from ldm.editing.references import read_references
    from ldm.editing.watermark import check_watermark
    from ldm.images import open_picture

    image = open_picture(opt.image_path, "image")
    if opt.watermark:
        check_watermark(image.size)
    references = read_references(len(opt.regions), opt.references, opt.reference_masks)
    return MarkedPhoto.mark(image, opt.regions, references, placement_from(opt), opt.control_image)


def load(opt: argparse.Namespace) -> tuple[PaintByExample, Path]:
    """The model and the path of its checkpoint. Raises UserError, also if --C or --f are not the model's."""
    from ldm.checkpoint.locate import choose_model
    from ldm.pipeline import PaintByExample

    config, ckpt = choose_model(opt.config, opt.ckpt, opt.lora)
    edit = PaintByExample.from_loading(replace(loading_from(opt), config=config, ckpt=ckpt))
    actual = {"C": edit.model.channels, "f": edit.model.first_stage_model.factor}
    for flag, value in actual.items():
        if getattr(opt, flag) not in (None, value):
            raise UserError(f"--{flag} {getattr(opt, flag)} does not fit the model: leave it out, or use {value}")
    return edit, ckpt


def settings_for(opt: argparse.Namespace, sampling: Sampling, edit: PaintByExample, ckpt: Path) -> dict[str, Any]:
    """The settings to write into the pictures, except for the seed."""
    from ldm.editing.options import settings_of

    settings = {
        FLAG_NAMES.get(flag, flag): getattr(opt, flag, None)
        for flag in SETTINGS
        if flag != "seed" and flag not in PRESET_SETTINGS
    }
    settings |= {"regions": [region.settings for region in opt.regions], **settings_of(sampling)}
    return settings | {"precision": edit.precision, "checkpoint": Path(ckpt).name}


@dataclass
class ModelView:
    """Pictures of what the model is given, collected from the plans of the first photo."""

    device: str
    precision: str
    sources: dict[str, Image.Image] = field(default_factory=dict)  # name of a file in source/ -> picture

    def add(self, photo: int, region: int, plan: PlannedEdit) -> None:
        from ldm.conventions import mask_to_image, reference_to_image, tensor_to_image

        prefix = f"{region + 1}_" if region else ""
        if photo != 0 or f"{prefix}GT" in self.sources:
            return
        inputs, (x0, y0, x1, y1) = plan.inputs, plan.place.window
        height, width = inputs.image.shape[-2:]
        print(f"editing {x1 - x0} x {y1 - y0} pixels of the photo at {width} x {height} on {self.device},"
              f" {self.precision} precision; the mask covers {1 - inputs.mask.mean().item():.0%} of them",
              file=sys.stderr)  # fmt: skip
        pictures = {
            "GT": tensor_to_image(inputs.image[0]),
            "mask": mask_to_image(inputs.mask[0]),
            "inpaint": tensor_to_image(inputs.inpaint_image[0]),
        }
        self.sources |= {prefix + kind: picture for kind, picture in pictures.items()}
        firsts = itertools.accumulate((len(each.learned) for each in inputs.conditions[:-1]), initial=0)
        for number, first in enumerate(firsts, region + 1):  # several regions together have a reference each
            self.sources[f"{number}_ref" if number > 1 else "ref"] = reference_to_image(inputs.reference[first])


def report_choice(choice: Choice) -> None:
    """Print the seeds that were tried, the best first."""
    if choice.tried:
        ranked = sorted(choice.tried, key=lambda attempt: -attempt.score)
        scores = ", ".join(f"{attempt.seed} {attempt.score:.3f}" for attempt in ranked)
        print(f"seed {choice.seed} is the best of {len(ranked)}: {scores}", file=sys.stderr)


def result_name(opt: argparse.Namespace) -> str:
    """The photo's name, with which the names of its results begin; cut if they would be too long."""
    region = f"{len(opt.regions)}_" if len(opt.regions) > 1 else ""
    longest = f"_{opt.seed + opt.n_iter * opt.n_samples * opt.best}-99_{region}inpaint.png"  # -99: see keep_earlier
    return short_stem(place(opt.image_path).stem, len(longest))


def write_results(
    opt: argparse.Namespace,
    results: dict[int, Image.Image],
    settings: Sequence[dict[str, Any]],
    sources: dict[str, Image.Image],
) -> None:
    """One batch's files, atomically. results: by seed; settings: one for each; sources: what belongs to the first
    batch."""
    from ldm.editing.metadata import save_with_settings

    if opt.skip_save:
        return
    outdir, name = place(opt.outdir), result_name(opt)
    pictures = results_folder(outdir)
    start = getattr(opt, "start", None)
    with staging(outdir) as folder:
        staged = folder if pictures == outdir else folder / pictures.name
        staged.mkdir(exist_ok=True)
        for i, (seed, picture) in enumerate(results.items()):
            own = settings[i] | {"start": None if start is None else start + i}
            save_with_settings(picture, staged / f"{name}_{seed}.png", {} if opt.no_settings else own)
        if sources:
            (folder / "source").mkdir()
        for kind, picture in sources.items():
            picture.save(folder / "source" / f"{name}_{opt.seed}_{kind}.png")
        keep_earlier(outdir, folder, name)
    print("\n".join(f"wrote {pictures / f'{name}_{seed}.png'}" for seed in results))


def write_grid(opt: argparse.Namespace, sheet: Image.Image) -> None:
    outdir, name = place(opt.outdir), result_name(opt)
    path = Path("grid") / f"grid-{name}_{opt.seed}.png"
    with staging(outdir) as folder:
        (folder / "grid").mkdir()
        sheet.save(folder / path)
        keep_earlier(outdir, folder, name)
    print(f"wrote {outdir / path}")


def keep_earlier(outdir: Place, staged: Path, name: str) -> None:
    """Renames the files of an earlier edit that staged ones are about to replace, unless all of them are the same:
    photo_321.png becomes photo_321-1.png, or has the first number that is free. name: of the photo."""
    files = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
    stem = re.compile(rf"{re.escape(name)}_\d+(?=[._])")
    earlier = [path for path in files if (outdir / path).is_file() and stem.search(path.name)]
    if all((outdir / path).read_bytes() == (staged / path).read_bytes() for path in earlier):
        return

    def numbered(path: Path, number: int) -> Place:
        return outdir / path.with_name(stem.sub(lambda found: f"{found[0]}-{number}", path.name, count=1))

    number = next(n for n in itertools.count(1) if not any(numbered(path, n).exists() for path in earlier))
    for path in earlier:
        (outdir / path).rename(numbered(path, number))
    pictures = [path for path in earlier if outdir / path.parent == results_folder(outdir)]
    for path in pictures or earlier[:1]:
        print(f"kept the earlier {outdir / path} as {numbered(path, number)}")


def draw_grid(
    marked: MarkedPhoto,
    reference_fit: str,
    edits: list[Image.Image],
    size: tuple[int, int],
    rows: int,
) -> Image.Image:
    """Photo, masked photo, references and edits side by side, each in its own proportions.

    size: (width, height) at which the model paints, whose proportions the cells have; their longer side is CELL at
    least."""
    from PIL import Image, ImageChops, ImageOps

    from ldm.editing.references import fit_reference
    from ldm.images import grid
    from ldm.pictures.colour import in_srgb

    painted = functools.reduce(ImageChops.lighter, marked.masks)
    photo = in_srgb(marked.photo)
    masked = Image.composite(Image.new("RGB", photo.size, "gray"), photo, painted)
    references = [fit_reference(own[0], reference_fit) for own in marked.references]
    cells = [photo, masked, *references, *map(in_srgb, edits)]
    zoom = max(1, CELL / max(size))
    cell_size = round(zoom * size[0]), round(zoom * size[1])
    return grid([ImageOps.pad(cell, cell_size, color="white") for cell in cells], rows or -(-len(cells) // 4))


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = edit_flags.parse(argv, __doc__)
    check_numbers(opt)
    check_outdir(place(opt.outdir))
    memory.keep_memory()

    from ldm.editing.details import plans_detail
    from ldm.editing.options import check_seed
    from ldm.editing.watermark import embed

    # Everything that can be checked cheaply is checked before the model is read.
    sampling, placement, blending = edit_flags.edit_sampling_from(opt), placement_from(opt), blending_from(opt)
    plans_detail(opt.detail, sampling, placement)
    selection, start = selection_from(opt), getattr(opt, "start", None)
    seeds = [opt.seed + i * opt.best for i in range(opt.n_iter * opt.n_samples)]
    for seed in (selection.seeds(seeds[-1])[-1], opt.seed, *([] if start is None else [start])):
        check_seed(seed)
    marked = read_pictures(opt)
    edit, ckpt = load(opt)
    settings = settings_for(opt, sampling, edit, ckpt)
    view = ModelView(str(edit.device), edit.precision)
    edits: list[Image.Image] = []
    begin = time.perf_counter()
    step_ends: list[float] = []
    choices = [
        edit.choose_seed(marked, seed, selection, sampling, placement, blending, batch_size=opt.n_samples)
        for seed in seeds
    ]
    for choice in choices:
        report_choice(choice)
    opt.seed = choices[0].seed  # which names the files of source/ and grid/

    for iteration in range(opt.n_iter):
        chosen = choices[iteration * opt.n_samples : (iteration + 1) * opt.n_samples]
        batch = [choice.seed for choice in chosen]
        pictures = edit.repaint(
            [marked] * len(batch),
            batch,
            sampling,
            placement,
            blending,
            batch_size=len(batch),
            starts=None if start is None else [start + i for i in range(len(batch))],
            callback=lambda step: step_ends.append(time.perf_counter()),
            on_plan=view.add,
        )
        if opt.watermark:
            pictures = [embed(picture) for picture in pictures]
        edits += pictures
        results = dict(zip(batch, pictures, strict=True))
        own = [settings | choice.settings for choice in chosen]
        write_results(opt, results, own, view.sources if iteration == 0 else {})
    if not opt.skip_grid:
        size = edit.size_for(marked.photo, opt.H, opt.W)[::-1]
        write_grid(opt, draw_grid(marked, placement.reference_fit, edits, size, opt.n_rows))

    step = statistics.median(b - a for a, b in pairwise([begin, *step_ends])) if step_ends else 0
    took = f"{len(step_ends)} steps of {step:.2f} s, {time.perf_counter() - begin:.0f} s in all"
    print(f"{took}, peak memory {memory.peak_memory()}", file=sys.stderr)

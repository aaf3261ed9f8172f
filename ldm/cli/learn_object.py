"""Learn an object from a few pictures of it: a token, given wherever a reference is.

    paint-by-example learn-object dog1.jpg dog2.jpg --box 40,30,300,280 --box 10,20,200,240 --out my_dog.safetensors
    paint-by-example edit --image_path photo.jpg --box 100,80,300,260 --reference_path my_dog.safetensors

Where the object is in each picture is said by one --box, --mask_path or --snap for each, in their order, or by
pictures that are transparent around it. Learning starts from the mean of the pictures' own tokens (textual inversion,
Gal et al. 2022); the model does not change. The same command goes on where it stopped, and with more --steps beyond.

Writes --out, and every --every steps <out's name>/000050.png, the first picture with its object painted anew.
scripts/learn_object.py is the same command."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.cli.command import command, command_parser
from ldm.cli.flags import add_model, add_sampling, check_range, loading_from, sampling_from
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.editing.regions import Region
    from ldm.methods.tokens import LearnedToken
    from ldm.storage import Place

KEEP = 25  # steps after which the token is written


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("pictures", nargs="+", help="of one object")
    p.add_argument("--out", required=True, help="file of the token, .safetensors")
    where = p.add_argument_group("where the object is, one of these for each picture")
    for flag, kind in (("--box", "box"), ("--mask_path", "mask"), ("--snap", "snap")):
        where.add_argument(flag, dest="regions", action="append", type=lambda word, kind=kind: (kind, word),
                           metavar="FILE" if kind == "mask" else "x0,y0,x1,y1")  # fmt: skip
    how = p.add_argument_group("learning")
    how.add_argument("--learning_steps", type=int, default=200, help="in all (%(default)s)")
    how.add_argument("--learning_rate", type=float, default=0.02, help="Adam's step, relative to the first token's"
                     " numbers (%(default)s)")  # fmt: skip
    how.add_argument("--batch_size", type=int, default=8, help="noised pictures in a step (%(default)s)")
    how.add_argument(
        "--every", type=int, default=50, help="steps between pictures on the way, 0 for none (%(default)s)"
    )
    how.add_argument("--seed", type=int, default=321, help="(%(default)s)")
    add_sampling(p)
    add_model(p)
    return p


def regions_from(opt: argparse.Namespace) -> list[Region] | None:
    """Raises UserError."""
    from ldm.editing.regions import Region, parse_box

    def region(kind: str, word: str) -> Region:
        return Region(mask=word) if kind == "mask" else Region(**{kind: parse_box(word).box})

    return [region(*each) for each in opt.regions] if opt.regions else None


def earlier(out: Place, learned_from: str, steps: int) -> LearnedToken | None:
    """What --out holds of this learning. Raises UserError: another one's token, nothing left to learn."""
    from ldm.methods.tokens import read_token

    if not out.exists():
        return None
    found = read_token(out)
    if found.learned_from != learned_from:
        raise UserError(f"{out} was learned from other pictures or in another way: choose another --out, or remove it")
    if found.steps >= steps:
        raise UserError(f"{out} has learned for {found.steps} steps already: give more --learning_steps to go on")
    return found


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check_range(opt, "learning_steps", high=100_000)
    check_range(opt, "batch_size")
    check_range(opt, "every", low=0, high=100_000)
    if not 0 < opt.learning_rate <= 1:
        raise UserError(f"--learning_rate {opt.learning_rate} is out of range: use a number above 0, up to 1")
    if not opt.out.endswith(".safetensors"):
        raise UserError(f"--out {opt.out} is not named as a token is: end it with .safetensors")
    if opt.offload:
        raise UserError("--offload does not go with learning, which needs the UNet on the device: leave it out")

    from tqdm import tqdm

    from ldm.conventions import tensor_to_image
    from ldm.editing.options import check_seed
    from ldm.files import replacing, sha256_of
    from ldm.images import open_picture
    from ldm.methods.learn_token import Learning, learn_token
    from ldm.methods.tokens import write_token
    from ldm.pipeline import PaintByExample
    from ldm.storage import place
    from ldm.training.objects import look_at

    check_seed(opt.seed)
    sampling, regions, out = sampling_from(opt), regions_from(opt), place(opt.out)
    images = [open_picture(path, "picture") for path in opt.pictures]
    if regions and len(regions) != len(images):
        raise UserError(f"there are {len(images)} pictures and {len(regions)} regions: give one for each picture")
    how = Learning(opt.learning_steps, opt.batch_size, opt.learning_rate, opt.seed)
    source = [[sha256_of(path) for path in opt.pictures], opt.regions, how.batch, how.rate, how.seed, opt.config]
    learned_from = hashlib.sha256(json.dumps([*source, opt.ckpt, opt.lora, opt.lora_scale]).encode()).hexdigest()
    before = earlier(out, learned_from, how.steps)
    edit = PaintByExample.from_loading(loading_from(opt))
    if before:
        before.check_model(edit.model, out)
    edit.model.requires_grad_(False)
    seen = look_at(edit, images, regions)
    start = before or seen.start(edit, learned_from)
    learning = learn_token(edit.networks.apply_model, seen.views, start, edit.model.schedule, how)
    with tqdm(desc="learning", total=how.steps, initial=start.steps, unit="step") as bar:
        for learned, loss in learning:
            bar.set_postfix(loss=f"{loss:.4f}")
            bar.update()
            if learned.steps % KEEP == 0 or learned.steps == how.steps:
                write_token(learned, out)
            if opt.every and (learned.steps % opt.every == 0 or learned.steps == how.steps):
                on_the_way = out.parent / out.stem / f"{learned.steps:06}.png"
                on_the_way.parent.mkdir(parents=True, exist_ok=True)
                with replacing(on_the_way) as temporary:
                    tensor_to_image(seen.paint(edit, learned, opt.seed, sampling)[0]).save(temporary, "PNG")
    print(f"wrote {out}: {how.steps - start.steps} steps, {how.steps} in all")

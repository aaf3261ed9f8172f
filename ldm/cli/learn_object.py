"""Learn an object from a few pictures of it: a token, given wherever a reference is, or an adapter of the model.

    paint-by-example learn-object dog1.jpg dog2.jpg --box 40,30,300,280 --box 10,20,200,240 --out my_dog.safetensors
    paint-by-example edit --image_path photo.jpg --box 100,80,300,260 --reference_path my_dog.safetensors
    paint-by-example learn-object dog1.png dog2.png --train v --prior cat.jpg --prior cup.jpg --out v.safetensors
    paint-by-example edit --image_path photo.jpg --box 100,80,300,260 --reference_path dog1.png --lora v.safetensors

Where the object is in each picture is said by one --box, --mask_path or --snap for each, in their order, or by
pictures that are transparent around it. Learning starts from the mean of the pictures' own tokens (textual inversion,
Gal et al. 2022); the model does not change. With --train an adapter learns instead: few numbers of the model, each
picture being its own reference; --prior keeps how other references are painted. The same command goes on where it
stopped, and with more --learning_steps beyond.

Writes --out, and every --every steps <out's name>/000050.png, the first picture with its object painted anew.
scripts/learn_object.py is the same command."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldm.cli.command import command, command_parser
from ldm.cli.flags import add_model, add_sampling, check_range, loading_from, sampling_from
from ldm.util import UserError

if TYPE_CHECKING:
    from ldm.editing.regions import Region
    from ldm.training.object_learners import Learner

KEEP = 25  # steps after which what has been learned is written
RATES = {"token": 0.02, "lora": 1e-4, "v": 1e-4, "biases": 1e-3, "singular": 1e-3}  # adapters: near the papers' own


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument("pictures", nargs="+", help="of one object")
    p.add_argument("--out", required=True, help="file of the token or the adapter, .safetensors")
    where = p.add_argument_group("where the object is, one of these for each picture")
    for flag, kind in (("--box", "box"), ("--mask_path", "mask"), ("--snap", "snap")):
        where.add_argument(flag, dest="regions", action="append", type=lambda word, kind=kind: (kind, word),
                           metavar="FILE" if kind == "mask" else "x0,y0,x1,y1")  # fmt: skip
    how = p.add_argument_group("learning")
    how.add_argument("--learning_steps", type=int, default=200, help="in all (%(default)s)")
    how.add_argument("--train", choices=RATES, default="token", help="what learns: a token, given in the place of a"
                     " reference; or an adapter of the model, for --lora: lora; v of cross-attention; biases and scales"
                     " of norms; singular values (%(default)s)")  # fmt: skip
    how.add_argument("--learning_rate", type=float, help="Adam's step; of a token relative to the first one's numbers"
                     f" ({', '.join(f'{kind} {rate}' for kind, rate in RATES.items())})")  # fmt: skip
    how.add_argument("--prior", action="append", metavar="PICTURE", help="a reference of something else, as often as"
                     " needed: an adapter keeps how the model paints it (none)")  # fmt: skip
    how.add_argument("--prior_weight", type=float, default=1.0, help="of what it keeps in the loss (%(default)s)")
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


def check(opt: argparse.Namespace) -> None:
    """Raises UserError: a value out of range, flags that exclude each other."""
    check_range(opt, "learning_steps", high=100_000)
    check_range(opt, "batch_size")
    check_range(opt, "every", low=0, high=100_000)
    if opt.learning_rate is None:
        opt.learning_rate = RATES[opt.train]
    if not 0 < opt.learning_rate <= 1:
        raise UserError(f"--learning_rate {opt.learning_rate} is out of range: use a number above 0, up to 1")
    if not 0 < opt.prior_weight <= 100:
        raise UserError(f"--prior_weight {opt.prior_weight} is out of range: use a number above 0, usually 1")
    if opt.prior and opt.train == "token":
        raise UserError("--prior keeps what the model knows, which a token does not change: leave it out")
    if not opt.out.endswith(".safetensors"):
        raise UserError(f"--out {opt.out} is not named as its file is: end it with .safetensors")
    if opt.offload:
        raise UserError("--offload does not go with learning, which needs the UNet on the device: leave it out")


def learned_from(opt: argparse.Namespace) -> str:
    """A digest of the pictures, the model and the way of learning, without the number of steps."""
    from ldm.files import sha256_of

    source = [[sha256_of(path) for path in opt.pictures], opt.regions, opt.batch_size, opt.learning_rate, opt.seed]
    source += [opt.config, opt.ckpt, opt.lora, opt.lora_scale]
    if opt.train != "token":
        source += [opt.train, opt.prior_weight]
    if opt.prior:
        source += [[sha256_of(path) for path in opt.prior], repr(sampling_from(opt))]
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()


def learner_from(
    opt: argparse.Namespace, edit: Any, seen: Any, others: Sequence[Any], before: Any, digest: str
) -> Learner:
    """seen: of look_at; others: pictures of other things; before: of `earlier`. Raises UserError."""
    from ldm.methods.learn_weights import Progress
    from ldm.training.object_learners import AdapterLearner, TokenLearner

    if opt.train == "token":
        if before:
            before.check_model(edit.model, opt.out)
        return TokenLearner(edit, seen, before or seen.start(edit, digest))
    prior = seen.prior(edit, others, opt.seed, sampling_from(opt)) if others else None
    start = before or Progress(learned_from=digest)
    return AdapterLearner(edit, seen, opt.train, prior, opt.prior_weight, start, opt.seed)


@command
def main(argv: Sequence[str] | None = None) -> None:
    opt = parser().parse_args(argv)
    check(opt)

    from tqdm import tqdm

    from ldm.conventions import tensor_to_image
    from ldm.editing.options import check_seed
    from ldm.files import replacing
    from ldm.images import open_picture
    from ldm.methods.learn_token import Learning
    from ldm.pipeline import PaintByExample
    from ldm.storage import place
    from ldm.training.object_learners import earlier
    from ldm.training.objects import look_at

    check_seed(opt.seed)
    sampling, regions, out = sampling_from(opt), regions_from(opt), place(opt.out)
    images = [open_picture(path, "picture") for path in opt.pictures]
    others = [open_picture(path, "prior picture") for path in opt.prior or ()]
    if regions and len(regions) != len(images):
        raise UserError(f"there are {len(images)} pictures and {len(regions)} regions: give one for each picture")
    how = Learning(opt.learning_steps, opt.batch_size, opt.learning_rate, opt.seed)
    digest = learned_from(opt)
    before = earlier(opt.train, out, digest, how.steps)
    edit = PaintByExample.from_loading(loading_from(opt))
    learner = learner_from(opt, edit, look_at(edit, images, regions), others, before, digest)
    with tqdm(desc="learning", total=how.steps, initial=learner.before, unit="step") as bar:
        for steps, loss in learner.steps(how):
            bar.set_postfix(loss=f"{loss:.4f}")
            bar.update()
            if steps % KEEP == 0 or steps == how.steps:
                learner.write(out)
            if opt.every and (steps % opt.every == 0 or steps == how.steps):
                on_the_way = out.parent / out.stem / f"{steps:06}.png"
                on_the_way.parent.mkdir(parents=True, exist_ok=True)
                with replacing(on_the_way) as temporary:
                    tensor_to_image(learner.paint(opt.seed, sampling)[0]).save(temporary, "PNG")
    print(f"wrote {out}: {how.steps - learner.before} steps, {how.steps} in all")

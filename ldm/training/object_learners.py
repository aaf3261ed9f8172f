"""Learning an object from a few pictures: its token, or an adapter of the model, behind one interface.

Both go on from what their files hold: the token's own file, or <out's name>/last.ckpt beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ldm.checkpoint.adapters import write_adapter
from ldm.editing.options import Sampling
from ldm.editing.painter import Painter
from ldm.files import replacing, save_pickled
from ldm.storage import Place, local
from ldm.training.adapters import LORA, current_adapter, inject_adapter
from ldm.training.checkpoints import LAST
from ldm.training.objects import ObjectPictures
from ldm.util import UserError, load_config, shipped

if TYPE_CHECKING:
    from ldm.methods.learn_token import Learning
    from ldm.methods.learn_weights import Examples, Progress
    from ldm.methods.tokens import LearnedToken

TOKEN = "token"  # beside the kinds of adapters


class Learner(Protocol):
    """steps yields the number of steps made and the loss of the last; write and paint take what has been learned by
    then. before: steps that were made earlier."""

    before: int

    def steps(self, how: Learning) -> Iterator[tuple[int, float]]: ...

    def write(self, out: Place) -> None: ...

    def paint(self, seed: int, sampling: Sampling) -> Tensor: ...  # (1,3,H,W), about [-1,1]


class TokenLearner:
    def __init__(self, edit: Painter, seen: ObjectPictures, start: LearnedToken):
        edit.model.requires_grad_(False)
        self.edit, self.seen, self.learned, self.before = edit, seen, start, start.steps

    def steps(self, how: Learning) -> Iterator[tuple[int, float]]:
        from ldm.methods.learn_token import learn_token

        parts = (self.edit.networks.apply_model, self.seen.views, self.learned, self.edit.model.schedule)
        for learned, loss in learn_token(*parts, how):
            self.learned = learned
            yield learned.steps, loss

    def write(self, out: Place) -> None:
        from ldm.methods.tokens import write_token

        write_token(self.learned, out)

    def paint(self, seed: int, sampling: Sampling) -> Tensor:
        return self.seen.paint(self.edit, seed, sampling, self.learned)


@dataclass
class AdapterLearner:
    """The edit's model becomes the one that learns: its fast networks keep the weights from before.

    kind: of inject_adapter; prior, weight: of learn_weights; seed: of a LoRA adapter's first numbers."""

    edit: Painter
    seen: ObjectPictures
    kind: str
    prior: Examples | None
    weight: float
    progress: Progress
    seed: int

    def __post_init__(self) -> None:
        self.before = self.progress.steps
        self.examples = self.seen.examples(self.edit)
        torch.manual_seed(self.seed)
        lora = load_config(shipped("configs/finetune_lora.yaml"))["model"][LORA]
        inject_adapter(self.edit.model, self.kind, lora)
        named = self.edit.model.named_parameters()
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}

    def steps(self, how: Learning) -> Iterator[tuple[int, float]]:
        from ldm.methods.learn_weights import learn_weights

        parts = (self.parameters, self.examples, self.prior, self.weight, self.edit.model.schedule)
        for progress, loss in learn_weights(self.edit.networks.apply_model, *parts, how, self.progress):
            self.progress = progress
            yield progress.steps, loss

    def write(self, out: Place) -> None:
        path = progress_path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_pickled(asdict(self.progress), temporary)
        write_adapter(current_adapter(self.edit.model), out)

    def paint(self, seed: int, sampling: Sampling) -> Tensor:
        return self.seen.paint(Painter(self.edit.model, self.edit.precision, fast=False), seed, sampling)


def progress_path(out: Place) -> Place:
    return out.parent / out.stem / LAST


def earlier(kind: str, out: Place, learned_from: str, steps: int) -> LearnedToken | Progress | None:
    """What --out holds of this learning. Raises UserError: another one's, nothing left to learn."""
    from ldm.methods.tokens import read_token

    if not out.exists():
        return None
    found = read_token(out) if kind == TOKEN else _read_progress(out)
    if found.learned_from != learned_from:
        raise UserError(f"{out} was learned from other pictures or in another way: choose another --out, or remove it")
    if found.steps >= steps:
        raise UserError(f"{out} has learned for {found.steps} steps already: give more --learning_steps to go on")
    return found


def _read_progress(out: Place) -> Progress:
    from ldm.methods.learn_weights import Progress

    path = progress_path(out)
    try:
        return Progress(**torch.load(local(path), map_location="cpu", weights_only=True))
    except Exception as error:  # missing or damaged: pickle, zipfile and torch raise errors of many types
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{out} exists, but its learning cannot go on from {path} ({reason}): choose another --out, or remove it"
        ) from error

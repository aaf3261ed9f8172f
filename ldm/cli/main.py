"""`paint-by-example <command>`: what main.py and scripts/ do, from any folder. A command is main() of the module
ldm.cli.<command>, which is imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "Editing": {
        "edit": "repaint regions of a photo with the object of a reference picture",
        "batch": "make many edits from a table",
        "web": "edit in the browser",
        "which-reference": "find out which reference is in a region",
        "learn-object": "learn a token from a few pictures of an object",
    },
    "Training": {
        "prepare": "turn annotations of boxes into an index for training",
        "show-samples": "draw training samples into a picture, to look at them",
        "prepare-latents": "encode training samples once, for many epochs",
        "train": "train or fine-tune a model",
    },
    "Evaluation": {
        "make-benchmark": "cut a benchmark like COCOEE out of annotated photos",
        "edit-benchmark": "edit all cases of a benchmark",
        "squares": "crop photos to squares, the real pictures of the FID",
        "fit-quality": "fit the quality score's mixture to real pictures",
        "evaluate": "compute FID, QS and CLIP score of a folder of results",
    },
    "Checkpoints": {
        "convert": "convert a checkpoint to .safetensors, .ckpt or a diffusers folder",
        "modify": "give Stable Diffusion 9 input channels, or make A + (B - C) of three models",
        "benchmark": "measure the speed and memory of an edit",
    },
    "Miniature world": {
        "make-miniworld": "draw the small world that the miniature model lives in",
        "mini-table": "score a miniature model",
        "train-mini": "train and score a miniature model from nothing in about a given time",
    },
}
HELP = "usage: paint-by-example <command> [options]\n       paint-by-example <command> --help"


def module_of(name: str) -> str:
    return f"ldm.cli.{name.replace('-', '_')}"


def overview() -> str:
    """All commands with a line each."""
    lines = [HELP]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:16}{help}" for name, help in commands.items())]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    names = [name for commands in COMMANDS.values() for name in commands]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name == "--version":
        import ldm

        print(f"paint-by-example {ldm.__version__}")
    elif name in names:
        importlib.import_module(module_of(name)).main(rest)
    else:
        near = difflib.get_close_matches(name, names)
        cure = f"did you mean {' or '.join(near)}?" if near else "paint-by-example --help lists the commands"
        print(f"paint-by-example: error: there is no command {name!r}: {cure}", file=sys.stderr)
        sys.exit(2)

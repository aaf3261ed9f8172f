"""A small world with few scenes, and the commands of the Makefile's targets."""

import subprocess

import pytest

from tests.conftest import ROOT

MINI = ROOT / "configs/mini"


def make_commands(target, *variables):
    """The Python commands of `make target`, in order: lists of words that begin with the script's name. Of a choice
    between resuming and starting a training, the one that starts it."""
    recipe = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = recipe.stdout.replace("\\\n", " ").splitlines()
    lines = [line.split("; else ")[-1].removesuffix("; fi").split(" || ")[-1] for line in lines]
    words = [line.split() for line in lines if line.strip().startswith(".venv/bin/python ")]
    return [each[1:] for each in words if each[1].endswith(".py")]


def run_script(script, words):
    """Runs a command of make_commands in this process. -> its stdout"""
    name = words[0].removeprefix("scripts/").removesuffix(".py")
    code, out, err = script(name, *words[1:])
    assert code == 0, err
    return out


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """world, a data set, and bench, a benchmark, as scripts/make_miniworld.py writes them, small."""
    from ldm.miniworld.write import SIDE, write_bench, write_world

    root = tmp_path_factory.mktemp("mini")
    write_world(root / "world", {"train": 24, "validation": 6, "test": 4, "pretraining": 12}, (192, 144), 3)
    write_bench(root / "bench", 6, 30, SIDE, (192, 144), 3)
    return root


@pytest.fixture(scope="session")
def individuals(tmp_path_factory):
    """world and bench as above, of individuals, in small scenes."""
    from ldm.cli.make_miniworld import main

    root = tmp_path_factory.mktemp("individuals")
    folders = ["--dataset_dir", str(root / "world"), "--bench", str(root / "bench")]
    counts = "--train=20 --validation=20 --test=1 --pretraining=30 --cases=6 --real=30"
    main(["--individuals", *folders, *counts.split(), "--height=72", "--side=64", "--seed=3"])
    return root

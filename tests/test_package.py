"""What `pip install` brings: the command, the files that come with it, and one sentence for what is not installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ldm
from ldm.cli import main as dispatcher
from ldm.util import shipped
from tests.conftest import ROOT

NAMES = [name for commands in dispatcher.COMMANDS.values() for name in commands]
MISSING = [  # modules that only extras install
    *("albumentations", "peft", "polars", "tensorboard", "webdataset"),
    "sklearn",  # timm and torchmetrics come with open_clip and Lightning, and the latter looks for torch_fidelity
    "gradio",
]


def call(monkeypatch, capsys, *argv: str) -> tuple[int, str, str]:
    """`paint-by-example *argv` in this process -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/paint-by-example", *argv])
    code = 0
    try:
        dispatcher.main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def without_extras(folder: Path, *argv: str, package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own that runs in `folder` and cannot import what only the extras install."""
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING})); sys.argv[0] = 'paint-by-example'\n"
    code += "from ldm.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=folder, env=environment, capture_output=True, text=True
    )


# ------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_the_command_lists_its_commands(monkeypatch, capsys, argv):
    code, out, _ = call(monkeypatch, capsys, *argv)
    assert code == 0
    assert all(f"\n  {name} " in out for name in NAMES)
    assert max(map(len, out.splitlines())) <= 100


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"paint-by-example {ldm.__version__}\n", "")


@pytest.mark.parametrize(("name", "cure"), [("edti", "did you mean edit"), ("zzz", "--help lists the commands")])
def test_an_unknown_command_is_one_sentence_with_a_cure(monkeypatch, capsys, name, cure):
    code, out, err = call(monkeypatch, capsys, name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and repr(name) in err and cure in err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_module_with_a_parser(monkeypatch, name):
    module = importlib.import_module(dispatcher.module_of(name))
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/paint-by-example", name])
    assert module.parser().prog == f"paint-by-example {name}"
    assert module.__doc__ and callable(module.main)


@pytest.mark.integration
def test_help_is_quick():
    """No command imports torch to print its help, except for train: its flags are those of Lightning's Trainer."""
    code = "import contextlib, os, sys; from ldm.cli.main import main\n"
    code += f"for name in {[name for name in NAMES if name != 'train']}:\n"
    code += "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, 'w')):\n"
    code += "        main([name, '--help'])\n"
    code += "    assert not {'torch', 'transformers', 'cv2'} & set(sys.modules), name"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.integration
def test_importing_the_pipeline_is_quick():
    heavy = ["torchvision", "pytorch_lightning", "transformers", "diffusers", "open_clip", "torch._dynamo"]
    code = f"import sys, ldm.pipeline; assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what a wheel of this checkout installs."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site-packages"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ldm", "configs", "examples", "integrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "pretrained_models").mkdir()
    for path in [ROOT / "pretrained_models/README.md", *(ROOT / "pretrained_models").glob("mini*")]:
        (source / "pretrained_models" / path.name).symlink_to(path)
    (source / "pretrained_models" / "sd-v1-4.ckpt").touch()  # what others have there stays out of the wheel
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


@pytest.mark.integration
def test_the_wheel_holds_what_the_command_needs(installed):
    held = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    held = {name for name in held if ".dist-info/" not in name}
    folders = [*ROOT.glob("configs/**/*"), *ROOT.glob("examples/**/*"), *ROOT.glob("pretrained_models/mini*")]
    folders += [path for path in ROOT.glob("integrations/diffusers/*") if path.suffix in (".py", ".md")]
    data = {f"ldm/shipped/{path.relative_to(ROOT).as_posix()}" for path in folders if path.is_file()}
    code = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("ldm/**/*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name}
    assert held == code | data | {"ldm/shipped/pretrained_models/README.md"}


@pytest.mark.integration
def test_an_installed_package_edits_from_an_empty_folder(installed, tmp_path):
    """With the miniature model and without the extras; the result is the checkout's, to the bit."""
    case = [shipped(f"examples/mini/{name}.png") for name in
            ("GT_3500/000000000001_GT", "Mask_bbox_3500/000000000001_mask", "Ref_3500/000000000001_ref")]  # fmt: skip
    argv = [word for pair in zip(("--image_path", "--mask_path", "--reference_path"), map(str, case), strict=True)
            for word in pair]  # fmt: skip
    argv += ["--config", "configs/mini/paint_by_example.yaml", "--ckpt", "pretrained_models/mini.safetensors"]
    argv += ["--device", "cpu", "--ddim_steps", "4"]
    pictures = []
    for name, package in (("installed", installed), ("checkout", ROOT)):
        folder = tmp_path / name
        folder.mkdir()
        done = without_extras(folder, "edit", *argv, package=package)
        assert done.returncode == 0, done.stderr
        (picture,) = folder.glob("results/*.png")
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.integration
def test_an_installed_package_builds_the_released_model_without_the_extras(installed, tmp_path):
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING}))\n"
    code += "from ldm.checkpoint.load import empty_model\n"
    code += "print(sum(p.numel() for p in empty_model('configs/v1.yaml').parameters()))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1e9, done.stderr


# ------------------------------------------------------------------------------------------------- extras


@pytest.mark.integration
@pytest.mark.parametrize(
    ("extra", "argv"),
    [
        ("train", ["train", "--base", "configs/tiny.yaml"]),
        ("train", ["prepare"]),
        ("train", ["make-benchmark", "--dataset_dir", "."]),
        ("web", ["web"]),
    ],
)
def test_what_an_extra_installs_is_named_where_it_is_missing(tmp_path, extra, argv):
    done = without_extras(tmp_path, *argv)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and f"pip install 'paint-by-example[{extra}]'" in done.stderr

"""Every config, the published one among them, and every command of the README."""

import importlib.metadata
import json
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import empty_model, write_checkpoint
from ldm.checkpoint.names import FIRST_CONV
from ldm.editing.metadata import save_with_settings
from ldm.models.base import TrainableModel
from ldm.pipeline import PaintByExample
from ldm.training.run import MONITORED
from ldm.util import UserError, get_obj_from_str, instantiate_from_config
from tests.conftest import ROOT

CONFIGS = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.parent.name != "augmentation"]


def whole(path):
    """A config as it is used: one that names no UNet, as those of configs/ablation, goes over configs/v1.yaml, or, in
    configs/mini, over the one there."""
    config = OmegaConf.load(path)
    if path.stem in ("first_stage", "clip", "oracle") or OmegaConf.select(config, "model.params.unet_config.target"):
        return config
    base = "configs/mini/paint_by_example.yaml" if path.parent.name == "mini" else "configs/v1.yaml"
    return OmegaConf.merge(OmegaConf.load(ROOT / base), config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
    config = whole(path)
    if "unet_config" not in config["model"]["params"]:
        assert instantiate_from_config(config["model"], TrainableModel).monitor in MONITORED
        return
    model = empty_model(config)
    assert model.learnable_vector.shape == (1, 1, model.model.diffusion_model.context_dim)
    assert model.proj_out.in_features == model.cond_stage_model.width


def test_v1_holds_the_published_values():
    """DESIGN's table of the published recipe, and the hyphenated target of the published file."""
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/v1.yaml"))
    params = config["model"]["params"]
    assert config["model"]["base_learning_rate"] == 1e-5
    assert (params["linear_start"], params["linear_end"], params["timesteps"]) == (0.00085, 0.012, 1000)
    assert (params["image_size"], params["channels"], params["scale_factor"]) == (64, 4, 0.18215)
    assert (params["u_cond_percent"], params["use_ema"]) == (0.2, False)
    assert params["scheduler_config"]["params"] == {
        "warm_up_steps": [10000],
        "cycle_lengths": [10000000000000],
        "f_start": [1e-6],
        "f_max": [1.0],
        "f_min": [1.0],
    }
    assert "params" not in params["cond_stage_config"]
    assert config["data"]["params"]["train"]["target"] == "ldm.data.open-images.OpenImageDataset"
    assert config["lightning"]["trainer"]["gpus"] == "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_target_of_every_config_exists(path):
    targets = set(re.findall(r"target: (\S+)", OmegaConf.to_yaml(whole(path))))
    for target in targets:
        get_obj_from_str(target)


def test_targets():
    assert get_obj_from_str("ldm.models.diffusion.ddpm.LatentDiffusion").__name__ == "LatentDiffusion"
    for config, words in (
        ({"target": "ldm.nowhere.X"}, "cannot be found"),
        ({"target": "Nothing"}, "cannot be found"),
        ({"params": {}}, "has no 'target'"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4}}, "ddconfig"),
        ({"target": None}, "cannot be found"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL", "params": "x"}, "has no 'target' and 'params'"),
        (5, "has no 'target'"),
        ({"target": "os.system", "params": {"command": "false"}}, "'os.system' is no Module"),
        ({"target": "subprocess.Popen", "params": {"args": "false"}}, "'subprocess.Popen' is no Module"),
    ):
        with pytest.raises(UserError, match=words):
            instantiate_from_config(config, torch.nn.Module)
    for config in (
        {"model": {"target": "torch.nn.Identity"}},
        {"model": 5},
        {},
        OmegaConf.create("model: ${nowhere}"),
        OmegaConf.create("model: {target: '${nowhere}'}"),
    ):
        with pytest.raises(UserError, match="config"):
            empty_model(config)


def test_a_hyphen_in_a_module_is_an_underscore(monkeypatch):
    module = type(sys)("some_module")
    module.Thing = dict
    monkeypatch.setitem(sys.modules, "some_module", module)
    assert get_obj_from_str("some-module.Thing") is dict


def test_environment_and_setup_agree():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    assert "python=3.11" in environment["dependencies"] and {"pip": ["-e .[all]"]} in environment["dependencies"]
    builds = [d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("opencv")]
    assert len(set(builds)) == 1, builds  # two would overwrite each other


# ------------------------------------------------------------------------------------------------ the README

README = (ROOT / "README.md").read_text()
COMMANDS = [
    command.replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    for command in re.findall(r"(?:[^\n\\]|\\\n)+", block)
    if not command.strip().startswith("#")
]
INPUTS = ("--input", "--a", "--b", "--c", "--ckpt", "scripts/convert_checkpoint.py")  # what is read follows these


def test_the_map_opens_the_readme():
    import ldm

    lines = [line.strip() for line in ldm.__doc__.splitlines()[2:]]
    opening = README[: README.index("## ")]
    assert [line.strip() for line in opening.splitlines() if line.strip() in lines] == lines
    for path in re.findall(r"^    ((?:ldm|configs|scripts|tests)/\S+|main\.py|Makefile)", README, flags=re.M):
        assert (ROOT / path).exists(), path


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


OWN_MODEL = re.compile(
    r"scripts/(read_bbox|show_samples|make_miniworld|benchmark_)|dataset/mine|logs/mine|checkpoints/mine"
)
DATA_COMMANDS = [
    c for c in COMMANDS if OWN_MODEL.search(c) and "--gpus" not in c
]  # from one's own pictures to one's own model, and figures
EVALUATION_COMMANDS = [  # run in tests/evaluation/test_evaluation.py
    c for c in COMMANDS if re.search(r"scripts/(create_square|fit_quality|inference_test_bench|eval_fid)", c)
]
MINI_COMMANDS = [c for c in COMMANDS if "scripts/mini_table.py" in c]  # run in tests/miniworld/test_mini.py
WEB_COMMANDS = [c for c in COMMANDS if "scripts/demo.py" in c]  # run in tests/web/test_web.py
GPU_COMMANDS = [c for c in COMMANDS if "--gpus" in c]
MODEL_COMMANDS = [
    c
    for c in COMMANDS
    if c.startswith("python ")
    and c not in DATA_COMMANDS + GPU_COMMANDS + EVALUATION_COMMANDS + MINI_COMMANDS + WEB_COMMANDS
]


@pytest.mark.parametrize("command", MODEL_COMMANDS, ids=lambda c: c[:60])
def test_every_python_command_of_the_readme_runs(command, tiny, script, tmp_path, monkeypatch):
    """As printed, in a copy of the folders it names, with the tiny model in the place of the real files."""
    for folder in ("ldm", "scripts", "configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    words = command.split("#")[0].split()
    if words[1] == "scripts/inference.py":
        words += ["--ddim_steps", "2", "--H", "64", "--W", "64", "--device", "cpu"]
    if words[1] == "scripts/benchmark.py":
        words += ["--size", "64", "--rounds", "1", "--precision", "full"]
    if "configs/v1.yaml" in words:
        words = ["configs/tiny.yaml" if word == "configs/v1.yaml" else word for word in words]
    elif "--config" not in words and words[1] != "scripts/random_checkpoint.py":
        words += ["--config", "configs/tiny.yaml"]
    inputs = [b for a, b in pairwise(words) if a in INPUTS]
    for name in inputs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        stand_in(tmp_path / name, tiny)
    if words[1] == "scripts/inference.py" and "--ckpt" not in words:
        words += ["--ckpt", str(tiny)]
    monkeypatch.chdir(tmp_path)
    if "--from" in words:
        picture = Image.new("RGB", (8, 8))
        files = {"image": "examples/image/example_2.jpg", "references": [["examples/reference/example_2.jpg"]]}
        (tmp_path / "results/results").mkdir(parents=True)
        save_with_settings(
            picture, words[words.index("--from") + 1], files | {"regions": [{"box": [150, 20, 400, 300]}]}
        )
    if words[1] == "scripts/edit_batch.py":
        (table,) = re.findall(r"```csv\n(.*?)```", README, flags=re.S)
        (tmp_path / "jobs.csv").write_text(table)
        words += ["--ckpt", str(tiny), "--ddim_steps", "2", "--device", "cpu"]
    code, out, err = script(Path(words[1]).stem, *words[2:])
    assert code == 0, err
    if words[1] == "scripts/edit_batch.py":
        assert "2 pictures written" in out and (tmp_path / "results/batch/2.png").exists()


def test_own_pictures_to_own_model_as_the_readme_says(script, tmp_path, monkeypatch):
    """Its commands in its order, on six pictures where the photos are, with few steps and small numbers."""
    for name in ("ldm", "scripts", "configs", "examples", "main.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 90, "height": 60} for i in range(6)]
    for image in images:
        Image.new("RGB", (90, 60), "orange").save(tmp_path / "photos" / image["file_name"])
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 40, 30]} for i in range(6)]
    instances = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "orange"}]}
    (tmp_path / "photos/instances.json").write_text(json.dumps(instances))
    small = {
        "scripts/benchmark_data.py": "--pictures=32 --rows=3000 --samples=2 --entries=100 --folder=.",
        "scripts/benchmark_training.py": "--steps=1",
        "scripts/make_miniworld.py": "--train=8 --validation=2 --test=2 --pretraining=2 --cases=2 --real=2",
        "scripts/inference.py": "--ddim_steps=2 --H=64 --W=64 --device=cpu",
        "main.py": "data.params.num_workers=0 data.params.batch_size=2 lightning.images.steps=1 --max_steps=2",
    }
    seen = set()
    for command in DATA_COMMANDS:
        words = command.split("#")[0].split()
        if "--memory" in words:  # the estimate of the full size takes a minute
            words = ["configs/tiny.yaml" if word == "configs/v1.yaml" else word for word in words]
        code, _, err = script(Path(words[1]).stem, *words[2:], *small.get(words[1], "").split())
        assert code == 0, err
        seen.add(words[1])
    assert seen >= {*small, "scripts/read_bbox.py", "scripts/show_samples.py", "scripts/convert_checkpoint.py"}
    assert Image.open(tmp_path / "results/samples.png").size == (5 * 258 - 2, 8 * 274 - 2)
    assert (tmp_path / "results/results/example_1_321.png").exists()
    assert sorted(path.name for path in (tmp_path / "dataset/mine/bbox").glob("[!.]*")) == [
        *("problems.csv", "train.parquet", "validation.parquet")
    ]


@pytest.mark.parametrize("command", GPU_COMMANDS, ids=lambda c: c[-30:])
def test_the_gpu_commands_of_the_readme_are_understood(command, script, monkeypatch):
    """Where there is no GPU they end in the sentence that says so."""
    monkeypatch.chdir(ROOT)
    code, _, err = script(Path(command.split()[1]).stem, *command.split()[2:])
    assert code == 2 and "no GPU that PyTorch can use" in err


def stand_in(place, tiny):
    """The tiny model at `place`; with 4 input channels where a Stable Diffusion model is meant."""
    tensors = read_checkpoint(tiny)
    if "sd-v1-4" in place.name or "fine-tuned" in place.name:
        tensors[FIRST_CONV] = tensors[FIRST_CONV][:, :4].contiguous()
    write_checkpoint(tensors, place)


def test_the_python_call_of_the_readme(tiny, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(from PIL.*?)```", README, flags=re.S)
    for name, replacement in (("configs/v1.yaml", "configs/tiny.yaml"), ("checkpoints/model.ckpt", str(tiny))):
        assert name in snippet
        snippet = snippet.replace(name, replacement)
    snippet = snippet.replace("steps=50", "steps=2")
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    exec(compile(snippet, "README.md", "exec"), {})
    assert list(tmp_path.glob("*.png"))


def test_the_python_of_editing_in_the_readme(example, monkeypatch):
    (snippet,) = re.findall(r"```python\n(mini = .*?)```", README, flags=re.S)
    load, *calls = snippet.splitlines()
    monkeypatch.chdir(ROOT)
    names = {**example, "another": example["reference"], "PaintByExample": PaintByExample}
    exec(load, names)
    names["mini"] = partial(names["mini"], steps=1, progress=False)
    exec("\n".join(calls), names)
    assert [picture.size for picture in [*names["layouts"], names["both"]]] == [example["image"].size] * 6

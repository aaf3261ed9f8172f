"""Training on twenty photos of one's own in three commands, with the miniature model; and without the train extra."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint.adapters import read_adapter
from tests.conftest import ROOT

pytestmark = pytest.mark.integration
MINI = "configs/mini/paint_by_example.yaml"
CKPT = "pretrained_models/mini.safetensors"


def test_twenty_photos_in_three_commands(script, tmp_path, monkeypatch):
    """The commands in configs/mini/finetune_lora.yaml, with 6 photos, 6 steps and short sampling."""
    for name in ("configs", "pretrained_models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(f"photos/{i}.jpg")
        mask = Image.new("L", (100, 80))
        mask.paste(255, (30, 20, 70, 60))
        mask.save(f"masks/{i}.png")

    config = (ROOT / "configs/mini/finetune_lora.yaml").read_text()
    lines = [line.removeprefix("#   python ").split() for line in config.splitlines() if line.startswith("#   python ")]
    assert [words[0] for words in lines] == ["scripts/read_bbox.py", "main.py", "scripts/inference.py"]
    prepare, train, edit = (words[1:] for words in lines)

    code, out, err = script("read_bbox", *prepare)
    assert code == 0 and "train.parquet: 5 pictures" in out, err
    short = ["--max_steps", 6, "--val_check_interval", 5, "lightning.images.steps=1", "data.params.num_workers=0"]
    code, out, err = script("main", *train, *short)
    assert code == 0, err
    assert "trained to step 6" in out and "boxes for test" not in out + err

    assert edit[-1] == "..." and "--lora" in edit
    assert f"to edit with: --lora {edit[edit.index('--lora') + 1]}" in out  # where the document says that it is
    adapter = read_adapter(edit[edit.index("--lora") + 1])
    assert any(tensor.any() for name, tensor in adapter.tensors.items() if name.endswith("lora_B.weight"))
    photo = ["--image_path", "photos/0.jpg", "--mask_path", "masks/0.png", "--reference_path", "photos/1.jpg"]
    photo += ["--ddim_steps", 2, "--device", "cpu"]
    edited = []
    for name, words in (("with", edit[:-1]), ("without", ["--config", MINI, "--ckpt", CKPT])):
        code, _, err = script("inference", *words, *photo, "--outdir", tmp_path / name)
        assert code == 0, err
        (path,) = (tmp_path / name / "results").glob("*.png")
        edited.append(np.asarray(Image.open(path)))
    assert (edited[0] != edited[1]).any()


def test_enough_steps_for_twenty_photos():
    """19 photos to train on are 4 batches per epoch; the run must not end after the first epoch."""
    from omegaconf import OmegaConf

    config = OmegaConf.merge(*(OmegaConf.load(ROOT / path) for path in (MINI, "configs/mini/finetune_lora.yaml")))
    assert config.lightning.trainer.max_steps >= 200 and config.lightning.trainer.max_epochs == -1
    assert config.data.params.batch_size <= 8 and config.data.params.test is None


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("polars", "prepare", ["--format", "csv", "--images", ".", "--annotations", "a.csv", "--dataset_dir", "x"]),
        ("polars", "make_benchmark", ["--dataset_dir", "."]),
        ("webdataset", "train", ["data.params.train.target=ldm.data.shards.ShardDataset"]),
        ("tensorboard", "train", []),
    ],
)
def test_a_missing_dependency_is_one_sentence(module, command, words, training_folder, tmp_path):
    if command == "train":
        words = ["--base", "configs/tiny.yaml", f"data.params.dataset_dir={training_folder}", *words]
        words += ["-p", str(tmp_path / "run"), "--max_steps", "1"]
    code = f"import sys; sys.modules[{module!r}] = None; from ldm.cli.{command} import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.endswith(f"training needs {module}: pip install 'paint-by-example[train]'")
    assert "Traceback" not in done.stderr

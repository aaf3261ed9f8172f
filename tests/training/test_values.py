"""What is typed as key=value or after a trainer's flag is what training gets."""

import pytest
from omegaconf import OmegaConf

from ldm.cli.train import merge_configs, parse
from ldm.cli.train import merged as merged_configs
from ldm.cli.values import read_value
from ldm.util import UserError, instantiate_from_config
from tests.conftest import ROOT

TINY = str(ROOT / "configs/tiny.yaml")
TEXTS = ("photos #2", "2024_01", "0012", "20241128", "1e3", "off", "null", "my: data", "~", "1:30", "[old] photos",
         "{a}", "'quoted'", "a=b", " padded ", "2024-11-28", "0x10", ".5", "https://host//x/")  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_key_of_text_takes_the_text(text, tmp_path):
    keys = {  # the parameter is declared but not set, set in the config, no parameter at all
        "data.params.dataset_dir": ("data", "params", "dataset_dir"),
        "data.params.train.params.dataset_dir": ("data", "params", "train", "params", "dataset_dir"),
        "model.pretrained_model": ("model", "pretrained_model"),
    }
    opt = parse(["--base", TINY, *(f"{key}={text}" for key in keys), "--default_root_dir", text])
    config = merged_configs(opt, opt.base)
    OmegaConf.save(config, tmp_path / "config.yaml")  # from which the run is resumed
    for read in (config, OmegaConf.load(tmp_path / "config.yaml")):
        for path in keys.values():
            value = read
            for part in path:
                value = value[part]
            assert value == text, path
        assert read["lightning"]["trainer"]["default_root_dir"] == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.params.test=null", None),
        ("data.params.test=~", None),
        ("model.params.scheduler_config=null", None),
        ("model.base_learning_rate=1e-5", 1e-5),
        ("model.base_learning_rate=2", 2),
        ("model.params.use_ema=on", True),
        ("model.params.use_ema=off", False),
        ("model.params.timesteps=1e3", 1000),
        ("model.params.timesteps=1_000", 1000),
        ("model.params.unet_config.params.channel_mult=[1, 2]", [1, 2]),
        ("model.params.scheduler_config.params.f_max[0]=0.5", 0.5),
        ("data.params.num_workers=null", None),
        ("data.params.train.params.reference_augmentation=recipe.yaml", "recipe.yaml"),
        ("data.params.train.params.reference_augmentation=off", False),
        ("lightning.trainer.gpus=0,1", "0,1"),
        ("lightning.trainer.gpus=null", None),
        ("lightning.trainer.precision=32", 32),
        ("lightning.trainer.val_check_interval=1.0", 1.0),
        ("lightning.trainer.max_time=00:12:00:00", "00:12:00:00"),
        ("model.unknown=2024_01", "2024_01"),
        ("model.unknown=1e3", 1000.0),
        ("model.unknown=off", "off"),
        ("model.unknown=a #2", "a #2"),
        ("model.unknown=[0012, '1', 3, null]", ["0012", "1", 3, None]),
    ],
)
def test_other_kinds(word, value):
    config = merge_configs([TINY], [word])
    got = OmegaConf.select(config, word.split("=")[0])
    assert got == value and type(got) in (type(value), type(OmegaConf.create([])))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.params.timesteps=off", "is not a whole number: correct it"),
        ("model.params.timesteps=0.5", "is not a whole number"),
        ("model.params.use_ema=maybe", "is not true or false"),
        ("model.base_learning_rate=fast", "is not a number or null"),
        ("data.params.test=off", "is not a {mapping} or null"),
        ("model.params.unet_config.params.channel_mult=1", r"is not a \[list\]"),
        ("model.params.unet_config.params.channel_mult=[1", r"is not a \[list\] or a {mapping} \("),
        ("data.params.dataset_dir=", "has no value"),
        ("model.base_learning_rate.x=1", r"model\.base_learning_rate is a value, not a section"),
        ("data.params.dataset_dir=???", r"data\.params\.dataset_dir is \?\?\?"),
        ("data.params.dataset_dir=${nowhere}", "nowhere"),
        ("model.target=off", "off"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(word, message):
    with pytest.raises(UserError, match=message) as error:
        instantiate_from_config(merge_configs([TINY], [word])["model"])
    assert "\n" not in str(error.value)


def test_flags_of_the_trainer():
    values = {  # flag -> what is typed, what it means
        "max_steps": ("1e3", 1000),
        "gradient_clip_val": ("1e-3", 1e-3),
        "devices": ("0,1", "0,1"),
        "strategy": ("off", "off"),
        "max_time": ("00:01:00:00", "00:01:00:00"),
        "precision": ("bf16", "bf16"),
        "limit_val_batches": ("null", None),
        "deterministic": ("warn", "warn"),
        "fast_dev_run": ("on", True),
        "enable_progress_bar": ("no", False),
    }
    opt = parse(["--base", TINY, *(word for flag, (text, _) in values.items() for word in (f"--{flag}", text))])
    trainer = merged_configs(opt, opt.base)["lightning"]["trainer"]
    assert {flag: trainer[flag] for flag in values} == {flag: value for flag, (_, value) in values.items()}
    opt = parse(["--base", TINY, "--max_epochs", "many"])
    with pytest.raises(UserError, match="--max_epochs many is not a whole number or null: correct it"):
        merged_configs(opt, opt.base)


def test_a_config_whose_name_has_an_equals_sign(tmp_path):
    path = tmp_path / "lr=1.yaml"
    OmegaConf.save(OmegaConf.load(TINY), path)
    opt = parse(["--base", str(path), "model.base_learning_rate=3"])
    assert opt.base == [path] and merged_configs(opt, opt.base)["model"]["base_learning_rate"] == 3


def test_text_that_a_yaml_file_turns_into_something_else_is_told(tmp_path):
    for yaml in ("2024_01", "0012", "off", "1e3"):
        config = OmegaConf.load(TINY)
        (tmp_path / "own.yaml").write_text(f"data: {{params: {{dataset_dir: {yaml}}}}}")
        with pytest.raises(UserError, match=r"dataset_dir is .*, which is not text: put it in quotes"):
            instantiate_from_config(OmegaConf.merge(config, OmegaConf.load(tmp_path / "own.yaml"))["data"])


def test_numbers_beyond_the_pattern():
    assert read_value("-1", int, "") == -1 and read_value("inf", float, "") == float("inf")
    with pytest.raises(UserError):
        read_value("inf", int, "")

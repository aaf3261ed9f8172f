"""scripts/convert_checkpoint.py and scripts/modify_checkpoints.py."""

import torch

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.surgery import halve
from tests.checkpoint.conftest import assert_same_tensors, write_lightning_file


def test_scripts_convert_and_add(tensors, tmp_path, script):
    a, b, c = (tmp_path / f"{x}.safetensors" for x in "abc")
    for path in (a, b, c):
        write_checkpoint(tensors, path)
    args = ("--add_difference", "--a", a, "--b", b, "--c", c, "--output", tmp_path / "out.ckpt")
    assert script("modify_checkpoints", *args)[0] == 0
    assert_same_tensors(read_checkpoint(tmp_path / "out.ckpt"), tensors)
    code, _, err = script("modify_checkpoints", "--add_difference", "--a", a)
    assert code == 2 and "needs --a, --b, --c and --output" in err
    code, _, err = script("modify_checkpoints", "--a", a)
    assert code == 2 and "--a, --b and --c need --add_difference" in err
    code, _, err = script("modify_checkpoints", "--add_difference", *args[1:], "--ema")
    assert code == 2 and "--input and --ema have no effect with --add_difference" in err
    assert script("convert_checkpoint", tmp_path / "out.ckpt", tmp_path / "half.safetensors", "--half")[0] == 0
    assert_same_tensors(read_checkpoint(tmp_path / "half.safetensors"), halve(tensors))
    write_lightning_file(tensors, tmp_path / "big.ckpt")
    assert script("convert_checkpoint", tmp_path / "big.ckpt", tmp_path / "small.ckpt")[0] == 0
    content = torch.load(tmp_path / "small.ckpt", weights_only=True)
    assert set(content) == {"state_dict"}
    assert_same_tensors(content["state_dict"], tensors)


def test_in_place_conversion_is_safe(tensors, tmp_path, script):
    path = tmp_path / "model.safetensors"
    write_checkpoint(tensors, path)
    write_checkpoint(halve(read_checkpoint(path)), path)  # read lazily from the file it replaces
    assert_same_tensors(read_checkpoint(path), halve(tensors))
    code, _, err = script("convert_checkpoint", path, tmp_path / "." / path.name, "--half")
    assert code == 2 and "is the input itself" in err

"""Writing files: what shares memory, what the disk is to blame for, and long names."""

import errno
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

from ldm.batch.table import Defaults, read_jobs
from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.adapters import Adapter, write_adapter
from ldm.checkpoint.load import write_checkpoint
from ldm.files import check_name, replacing, save_pickled, save_tensors, short_stem, staging
from ldm.util import UserError
from tests.conftest import GOLDEN


def test_tensors_that_share_memory_are_each_written(tmp_path):
    base = torch.arange(24.0)
    tensors = {
        "whole": base,
        "tied": base,
        "part": base[4:8],
        "overlap": base[6:12],
        "rest": base[12:],
        "transposed": base.view(4, 6).T,
        "integers": base.view(torch.int32),
        "alone": torch.ones(3),
        "empty": torch.ones(0),
        "scalar": torch.tensor(2.0),
    }
    for order in (list(tensors), list(reversed(tensors))):
        save_tensors({name: tensors[name] for name in order}, tmp_path / "m.safetensors", {"format": "pt"})
        read = load_file(tmp_path / "m.safetensors")
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    save_tensors({"a": base, "b": base}, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size > 2 * base.nbytes


def test_tied_weights_of_every_writer(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    tied = {**tensors, "proj_out.bias": tensors["learnable_vector"].flatten()}
    tied["model.diffusion_model.out.0.weight"] = tied["model.diffusion_model.out.0.bias"]
    torch.save({"state_dict": tied}, tmp_path / "tied.ckpt")
    for name in ("m.safetensors", "m.ckpt"):
        write_checkpoint(read_checkpoint(tmp_path / "tied.ckpt"), tmp_path / name)
        read = read_checkpoint(tmp_path / name)
        assert all(torch.equal(read[each], tied[each]) for each in tied)
    shared = torch.ones(2, 4)
    layers = {f"{layer}.lora_{x}.weight": shared if x == "A" else shared.T for layer in ("l", "m") for x in "AB"}
    write_adapter(Adapter(layers, 2, 2), tmp_path / "lora.safetensors")
    assert all(torch.equal(t, layers[name]) for name, t in load_file(tmp_path / "lora.safetensors").items())


@pytest.fixture
def full_disk():
    """Files may not grow beyond 1 MB."""
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, action)


@pytest.mark.parametrize("write", [save_tensors, save_pickled])
def test_the_disk_is_to_blame_for_its_own_errors(write, tmp_path, full_disk):
    large = {"a": torch.ones(10**6)}
    with pytest.raises(OSError) as raised:
        write(large, tmp_path / "m")
    assert raised.value.errno == errno.EFBIG
    with (
        pytest.raises(UserError, match=r"writing to .* failed \(File too large\): free some space"),
        staging(tmp_path) as t,
    ):
        write(large, t / "m")
    with pytest.raises(UserError, match=r"failed \(File name too long\): shorten the name"), staging(tmp_path) as t:
        write({"a": torch.ones(1)}, t / ("a" * 300))
    with pytest.raises(OSError), replacing(tmp_path / "m") as temporary:
        write(large, temporary)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".partial")]


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError("cannot write mode F as PNG"), ValueError("x")])
def test_the_disk_is_not_to_blame_for_others(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), staging(tmp_path):
        raise error
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("stem", ["a" * 255, "ä" * 127, "写真" * 40, "a" * 241])
def test_long_stems(stem, tmp_path):
    for room in (4, 8, 20, 40):
        short = short_stem(stem, room)
        name = short + "x" * room
        assert len(os.fsencode(name)) <= 255
        (tmp_path / name).write_text("")
        assert short == stem or len(os.fsencode(stem)) + room > 255
        assert short_stem(stem[:-1] + "b", room) != short  # another photo's
        with replacing(tmp_path / ("b" * 255)) as temporary:
            temporary.write_text("")


def test_names_that_are_too_long_are_told_before_the_work(tmp_path, script):
    check_name(tmp_path / ("a" * 255), "out")
    with pytest.raises(UserError, match=r"out äää.* has a name of 260 bytes, more than the 255 .*: shorten the name"):
        check_name(tmp_path / ("ä" * 130) / "x.png", "out")
    long = "a" * 256
    (tmp_path / "jobs.csv").write_text(f'image,box,reference,out\na.png,"1,2,3,4",b.png,{long}.png\n')
    jobs, bad = read_jobs(tmp_path / "jobs.csv", Defaults())
    assert not jobs and "has a name of 260 bytes" in bad[0].reason
    for command, *words in (
        ("convert_checkpoint", "nowhere.ckpt", f"{long}.safetensors"),
        ("modify_checkpoints", "--input", "nowhere.ckpt", "--output", f"{long}.ckpt"),
        ("main", "--base", "configs/tiny.yaml", "--name", long),
    ):
        code, _, err = script(command, *words)
        assert code == 2 and "shorten the name" in err and "Traceback" not in err, err

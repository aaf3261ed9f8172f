"""Hostile files: reading a checkpoint runs nothing from it and reads nothing outside it."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ldm.checkpoint import read_checkpoint
from ldm.util import UserError
from tests.checkpoint.conftest import assert_same_tensors


class Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_hostile_pickle_runs_nothing(tensors, tmp_path, zipped):
    mark = tmp_path / "ran"
    hostile = {
        "state_dict": tensors,
        "a": Attack(os.system, f"touch {mark}"),
        "b": Attack(eval, f"open({str(mark)!r}, 'w')"),
        "c": Attack(subprocess.check_call, ["touch", str(mark)]),
    }
    path = tmp_path / "hostile.ckpt"
    torch.save(hostile, path, _use_new_zipfile_serialization=zipped)
    assert_same_tensors(read_checkpoint(path), tensors)
    assert not mark.exists()
    # the attack is real: Python's own unpickler runs it
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_bare_hostile_pickle_is_refused(tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(pickle.dumps(Attack(os.system, f"touch {mark}"), protocol=2))
    with pytest.raises(UserError, match=r"hostile\.ckpt is truncated or damaged"):
        read_checkpoint(path)
    assert not mark.exists()


def zipped_pickle(path, pickled, records=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records:
            archive.writestr(f"archive/data/{name}", content)


@pytest.mark.parametrize("function", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_a_pickle_cannot_alter_what_it_may_call(tensors, tmp_path, function):
    """pickle's BUILD sets attributes of an object; the objects that a pickle receives have none and are not shared."""
    for state in (b"}X\x08\x00\x00\x00__code__X\x01\x00\x00\x00xs", b"N}X\x09\x00\x00\x00_functionI0\ns\x86"):
        zipped_pickle(tmp_path / "alter.ckpt", b"\x80\x02ctorch._utils\n" + function.encode() + b"\n" + state + b"b.")
        with pytest.raises(UserError, match="has no tensors"):
            read_checkpoint(tmp_path / "alter.ckpt")
        torch.save({"state_dict": tensors}, tmp_path / "good.ckpt")
        assert_same_tensors(read_checkpoint(tmp_path / "good.ckpt"), tensors)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    def pickled(offset, size, stride):
        class Rebuild:
            def __reduce__(self):
                return torch._utils._rebuild_tensor_v2, (Stored(), offset, size, stride, False, OrderedDict())

        class Stored:
            pass

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(obj, Stored) else None

        Pickler(file := io.BytesIO(), protocol=2).dump({"w": Rebuild()})
        return file.getvalue()

    path = tmp_path / "m.pt"
    zipped_pickle(path, pickled(1, (3,), (1,)), [("0", np.arange(4, dtype=np.float32).tobytes())])
    assert read_checkpoint(path)["w"].tolist() == [1, 2, 3]
    for offset, size, stride in (
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2**40,), (1,)),
    ):
        zipped_pickle(path, pickled(offset, size, stride), [("0", bytes(16))])
        with pytest.raises(UserError, match="truncated or damaged"):
            read_checkpoint(path)
    zipped_pickle(path, pickled(0, (4,), (1,)), [("0", bytes(15))])  # a storage shorter than it says
    with pytest.raises(UserError, match="truncated or damaged"):
        read_checkpoint(path)


class Program(torch.nn.Module):
    """A TorchScript program that writes to a file when it is loaded."""

    def __init__(self):
        super().__init__()
        self.training = False

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return ("MARK_OF_THE_TEST", False)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.training = state[1]
        t = torch.from_file(state[0], True, 10)
        t.fill_(7.0)
        print(t.sum())  # or it is optimised away


def test_a_program_does_not_run(tmp_path, monkeypatch):
    """torch.load runs the code of TorchScript archives, also if a second central directory of the zip hides it."""
    monkeypatch.chdir(tmp_path)
    path, mark = tmp_path / "program.pt", tmp_path / "MARK_OF_THE_TEST"
    torch.jit.save(torch.jit.script(Program()), path)
    torch.jit.load(path)
    assert mark.exists()  # the attack is real
    mark.unlink()
    with pytest.raises(UserError, match=r"program\.pt"):
        read_checkpoint(path)
    raw = path.read_bytes()
    end = raw.rfind(b"PK\5\6")
    entries, size, start = struct.unpack("<10xH2L2x", raw[end : end + 22])
    name = b"archive/data.pkl"
    extra = size - 46 - len(name)
    decoy = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 33, 0, 0, 0, len(name), extra, 0, 0, 0, 0, 0
    )
    decoy += name + struct.pack("<HH", 0xFEFE, extra - 4) + bytes(extra - 4)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, size, start, 0)
    path.write_bytes(raw[: start + size] + decoy + tail)
    with pytest.raises(UserError, match=r"program\.pt"):
        read_checkpoint(path)
    assert not mark.exists()

"""Every format of one file, and damaged files."""

import re
import struct
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import read_checkpoint
from ldm.util import UserError
from tests.checkpoint.conftest import assert_same_tensors, pickled, write_lightning_file


def test_a_pickled_lightning_file_gives_its_tensors(tensors, tmp_path):
    write_lightning_file(tensors, tmp_path / "model.ckpt")
    assert_same_tensors(read_checkpoint(tmp_path / "model.ckpt"), tensors)
    assert "pytorch_lightning_of_2022" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_old_and_new_pickled_layouts(tensors, tmp_path, zipped):
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    torch.save(dict(tensors), tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)  # without a "state_dict"
    assert_same_tensors(read_checkpoint(tmp_path / "a.ckpt"), tensors)
    assert_same_tensors(read_checkpoint(tmp_path / "b.pt"), tensors)


def test_a_zip_that_was_packed_again_with_compression(tensors, tmp_path):
    torch.save({"state_dict": tensors}, tmp_path / "stored.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "stored.ckpt") as stored,
        zipfile.ZipFile(tmp_path / "deflated.ckpt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert_same_tensors(read_checkpoint(tmp_path / "deflated.ckpt"), tensors)


def test_a_safetensors_header_that_begins_like_a_web_page(tmp_path):
    """The first byte is the lowest of the header's length, and may equal '<'."""
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(1)}, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length] + b" " * ((ord("<") - length) % 256)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    assert path.read_bytes()[:1] == b"<"
    assert list(read_checkpoint(path)) == ["w"]


def test_tensors_of_other_kinds_are_left_out(tensors, tmp_path):
    """Sparse, quantised and float8 tensors are skipped, the others are read."""
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    torch.save({"state_dict": {**tensors, **others}}, tmp_path / "m.ckpt")
    assert_same_tensors(read_checkpoint(tmp_path / "m.ckpt"), tensors)


def damaged(tmp_path, tensors):
    good_ckpt, good_st = tmp_path / "good.ckpt", tmp_path / "good.safetensors"
    torch.save({"state_dict": tensors}, good_ckpt)
    save_file(tensors, good_st)
    yield "truncated.ckpt", good_ckpt.read_bytes()[:-4000], "is truncated or damaged"
    yield "truncated.safetensors", good_st.read_bytes()[:-4000], "is truncated or damaged"
    yield "head.safetensors", good_st.read_bytes()[:40], "is truncated or damaged"
    yield "page.ckpt", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not a checkpoint"
    yield "empty.ckpt", b"", "is empty"
    yield "text.ckpt", b"hello, this is no checkpoint at all", "neither a .ckpt nor a .safetensors"
    yield "pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"
    yield "other.pt", pickled({"a": 1}, tmp_path), "has no tensors"
    yield "list.pt", pickled([torch.ones(1)], tmp_path), "has no tensors"


def test_damaged_files_get_one_sentence(tensors, tmp_path):
    for name, content, words in damaged(tmp_path, tensors):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_checkpoint(path)
        message = str(error.value)
        assert message.startswith(f"checkpoint {path} ") and words in message and "\n" not in message, message
        assert re.search(r": (download|use|fetch) ", message), message  # the cure
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "missing.ckpt")

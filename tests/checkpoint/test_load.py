"""Loading is strict, and writing is atomic."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import write_checkpoint
from ldm.checkpoint.names import FIRST_CONV, UNET
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError
from tests.checkpoint.conftest import assert_same_tensors
from tests.conftest import GOLDEN, ROOT


def test_averaged_weights_are_read_if_asked_for(tensors, tmp_path):
    averages = {name: t + 1 for name, t in tensors.items() if name.startswith(UNET)}
    extra = {"model_ema." + name[len("model.") :].replace(".", ""): t for name, t in averages.items()}
    path = tmp_path / "ema.ckpt"
    torch.save({"state_dict": {**tensors, **extra, "model_ema.decay": torch.tensor(0.9999)}}, path)
    assert_same_tensors(read_checkpoint(path), tensors)
    assert_same_tensors(read_checkpoint(path, ema=True), tensors | averages)
    with pytest.raises(UserError, match="lacks averaged weights for 208 tensors"):
        read_checkpoint(GOLDEN / "model.safetensors", ema=True)


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "m.pt"])
def test_what_is_written_is_read(tensors, tmp_path, name):
    write_checkpoint(tensors, tmp_path / name)
    assert_same_tensors(read_checkpoint(tmp_path / name), tensors)
    assert os.listdir(tmp_path) == [name]  # nothing else is left
    (tmp_path / "other").write_text("")
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode  # readable as any new file


def test_a_models_state_dict_equals_its_file(model, tensors):
    assert_same_tensors(model.state_dict(), tensors)


def test_loading_is_strict_and_names_what_is_wrong(tensors, golden_config, tmp_path):
    def load(changed):
        save_file(changed, tmp_path / "m.safetensors")
        with pytest.raises(UserError) as error:
            load_model(golden_config, tmp_path / "m.safetensors")
        assert "m.safetensors" in str(error.value)
        return str(error.value)

    without = {name: t for name, t in tensors.items() if not name.startswith("cond_stage_model.mapper")}
    assert "it lacks 60 tensors (cond_stage_model.mapper.resblocks.0.attn.c_proj.bias, " in load(without)
    assert "it has 1 tensor (extra.weight) too many" in load({**tensors, "extra.weight": torch.ones(1)})
    message = load({**tensors, "proj_out.weight": torch.ones(7, 48)})
    assert "proj_out.weight is (7, 48) instead of (40, 48)" in message
    narrow = load({**tensors, FIRST_CONV: tensors[FIRST_CONV][:, :4].contiguous()})
    assert "scripts/modify_checkpoints.py" in narrow
    for kind in (torch.int8, torch.int64):
        assert "instead of float" in load({**tensors, "proj_out.bias": tensors["proj_out.bias"].to(kind)})
    assert "another noise schedule" in load({**tensors, "alphas_cumprod": tensors["alphas_cumprod"] ** 2})
    # as it would be if transformers renamed a layer
    without = {name: t for name, t in tensors.items() if "post_layernorm" not in name}
    assert "it lacks 2 tensors (cond_stage_model.transformer.vision_model.post_layernorm.bias, " in load(without)


def test_tensors_that_follow_from_the_config_may_be_missing(tensors, golden_config, tmp_path):
    lean = {name: t for name, t in tensors.items() if name not in BUFFERS and not name.endswith("position_ids")}
    save_file(lean, tmp_path / "lean.safetensors")
    assert_same_tensors(load_model(golden_config, tmp_path / "lean.safetensors").state_dict(), tensors)


def test_writing_where_it_is_not_possible(tensors, golden_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        write_checkpoint(tensors, tmp_path / "file" / "m.ckpt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_checkpoint(tensors, tmp_path / "folder", golden_config)
    (tmp_path / "x.ckpt").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        write_checkpoint(tensors, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="diffusers' mapper"):
        write_checkpoint(tensors, tmp_path / "new", golden_config)  # 5 blocks over 2 CLIP layers
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "x.ckpt"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_a_full_disk_leaves_the_old_file(tensors, tmp_path, name):
    """A real failure of a real process: files may not grow beyond 1 MB."""
    path = tmp_path / name
    write_checkpoint(tensors, path)
    before = path.read_bytes()
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
        "import sys; sys.argv = ['convert_checkpoint.py', *sys.argv[1:]];"
        "import runpy; runpy.run_path('scripts/convert_checkpoint.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, GOLDEN / "model.safetensors", path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "writing to" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]

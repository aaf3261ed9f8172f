"""Every format in and out, against diffusers; files that are damaged or hostile."""

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.diffusers import UNET
from ldm.checkpoint.load import FIRST_CONV, write_checkpoint
from ldm.checkpoint.surgery import add_difference, halve, widen
from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor
from ldm.models.diffusion.conditioning import inpaint_channels, reference_token
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.schedule import BUFFERS
from ldm.util import UserError
from tests.conftest import GOLDEN, ROOT


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "model.safetensors")


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


class ForeignCallback:
    """Stands for the objects of other packages in an old Lightning file."""

    def __init__(self):
        self.state = {"best": np.float64(0.5), "path": "epoch=3.ckpt"}


def lightning_file(tensors, path, module="pytorch_lightning_of_2022.callbacks"):
    """A file like those that Lightning 1.x wrote: optimizer state, callbacks, numpy scalars, an argparse Namespace, and
    classes that cannot be imported here."""
    names = module.split(".")
    packages = [".".join(names[: i + 1]) for i in range(len(names))]
    for name in packages:
        sys.modules[name] = type(sys)(name)
    sys.modules[module].ForeignCallback = ForeignCallback
    ForeignCallback.__module__ = module
    try:
        torch.save(
            {
                "epoch": 39,
                "global_step": np.int64(7),
                "pytorch-lightning_version": "1.4.2",
                "state_dict": tensors,
                "callbacks": {ForeignCallback: ForeignCallback(), "list": [ForeignCallback()]},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1000)}}, "param_groups": [{"lr": 1e-5}]}],
                "hyper_parameters": Namespace(a={1, 2}, dtype=torch.float16),
            },
            path,
        )
    finally:
        for name in packages:
            del sys.modules[name]


def test_a_pickled_lightning_file_gives_its_tensors(tensors, tmp_path):
    lightning_file(tensors, tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"), tensors)
    assert "pytorch_lightning_of_2022" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_old_and_new_pickled_layouts(tensors, tmp_path, zipped):
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    torch.save(dict(tensors), tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)  # without a "state_dict"
    same(read_checkpoint(tmp_path / "a.ckpt"), tensors)
    same(read_checkpoint(tmp_path / "b.pt"), tensors)


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
    same(read_checkpoint(path), tensors)
    assert not mark.exists()
    # the attack is real: Python's own unpickler runs it
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_bare_hostile_pickle_is_refused(tmp_path):
    mark = tmp_path / "ran"
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(pickle.dumps(Attack(os.system, f"touch {mark}"), protocol=2))
    with pytest.raises(UserError, match=r"hostile\.ckpt"):
        read_checkpoint(path)
    assert not mark.exists()


def zipped_pickle(path, pickled, records=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records:
            archive.writestr(f"archive/data/{name}", content)


@pytest.mark.parametrize("function", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_a_pickle_cannot_alter_what_it_may_call(tensors, tmp_path, function):
    """BUILD on a global sets attributes of it; those that we give out have none, and are not shared."""
    for state in (b"}X\x08\x00\x00\x00__code__X\x01\x00\x00\x00xs", b"N}X\x09\x00\x00\x00_functionI0\ns\x86"):
        zipped_pickle(tmp_path / "alter.ckpt", b"\x80\x02ctorch._utils\n" + function.encode() + b"\n" + state + b"b.")
        with pytest.raises(UserError, match="has no tensors"):
            read_checkpoint(tmp_path / "alter.ckpt")
        torch.save({"state_dict": tensors}, tmp_path / "good.ckpt")
        same(read_checkpoint(tmp_path / "good.ckpt"), tensors)


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


def test_a_zip_that_was_packed_again_with_compression(tensors, tmp_path):
    torch.save({"state_dict": tensors}, tmp_path / "stored.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "stored.ckpt") as stored,
        zipfile.ZipFile(tmp_path / "deflated.ckpt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    same(read_checkpoint(tmp_path / "deflated.ckpt"), tensors)


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
    """TorchScript runs code when torch.load meets it, also behind a second central directory that hides it."""
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


def test_averaged_weights(tensors, tmp_path):
    averages = {name: t + 1 for name, t in tensors.items() if name.startswith(UNET)}
    extra = {"model_ema." + name[len("model.") :].replace(".", ""): t for name, t in averages.items()}
    path = tmp_path / "ema.ckpt"
    torch.save({"state_dict": {**tensors, **extra, "model_ema.decay": torch.tensor(0.9999)}}, path)
    same(read_checkpoint(path), tensors)
    same(read_checkpoint(path, ema=True), tensors | averages)
    with pytest.raises(UserError, match="lacks averaged weights for 208 tensors"):
        read_checkpoint(GOLDEN / "model.safetensors", ema=True)


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "m.pt"])
def test_what_is_written_is_read(tensors, tmp_path, name):
    write_checkpoint(tensors, tmp_path / name)
    same(read_checkpoint(tmp_path / name), tensors)
    assert os.listdir(tmp_path) == [name]  # nothing else is left
    (tmp_path / "other").write_text("")
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode  # readable as any new file


def test_a_model_gives_back_its_file(model, tensors):
    same(model.state_dict(), tensors)


def test_half(tensors, golden_config, tmp_path):
    half = halve(tensors)
    assert half[FIRST_CONV].dtype == torch.float16
    assert half["alphas_cumprod"].dtype == torch.float32
    write_checkpoint(half, tmp_path / "half.safetensors")
    model = load_model(golden_config, tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict()[FIRST_CONV], half[FIRST_CONV].float())
    # as other tools halve: the schedule with the rest
    for dtype in (torch.float16, torch.bfloat16):
        save_file({name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}, tmp_path / "h.pt")
        assert torch.equal(load_model(golden_config, tmp_path / "h.pt").betas, tensors["betas"])


# ------------------------------------------------------------------------------------------------ diffusers


@pytest.fixture(scope="module")
def toy_config(golden_config):
    """The golden config with a CLIP tower of 9 layers and so, by diffusers' rule, a mapper of 2 blocks."""
    from omegaconf import OmegaConf

    return OmegaConf.merge(
        golden_config,
        {
            "model": {
                "params": {
                    "unet_config": {"params": {"num_res_blocks": 2}},
                    "cond_stage_config": {"params": {"mapper_layers": 2, "vision_config": {"num_hidden_layers": 9}}},
                }
            }
        },
    )


def toy_autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )


def toy_scheduler():
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


@pytest.fixture(scope="module")
def pipe():
    """A random PaintByExamplePipeline, made by diffusers alone."""
    from diffusers import PaintByExamplePipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    encoder_class = sys.modules[PaintByExamplePipeline.__module__].PaintByExampleImageEncoder
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=40,
        attention_head_dim=4,
    )
    vae = toy_autoencoder()
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=9,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=40,
    )
    scheduler = toy_scheduler()
    return PaintByExamplePipeline(
        vae=vae,
        image_encoder=encoder_class(vision),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipe_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "pipe"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(example):
    image = example["image"].convert("RGB").resize((32, 32))
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[8:24, 8:32] = 255  # whole latent pixels: diffusers resizes masks by nearest neighbour
    from PIL import Image

    return image, Image.fromarray(mask.numpy()), reference_to_tensor(example["reference"].convert("RGB"), 32)[None]


def their_latents(pipe, pictures, steps):
    image, mask, reference = pictures
    return pipe(
        image=image,
        mask_image=mask,
        example_image=reference,
        latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
        generator=torch.Generator().manual_seed(4),
        guidance_scale=5.0,
        num_inference_steps=steps,
        output_type="latent",
    ).images


@torch.no_grad()
def our_latents(model, pictures, steps, sampler):
    image, mask, reference = pictures
    image, mask = image_to_tensor(image)[None], mask_to_tensor(mask)[None]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    inpaint = inpaint_channels(model, image * mask, mask, noise)
    latents, _ = sampler(model).sample(
        S=steps,
        batch_size=1,
        shape=(4, 16, 16),
        conditioning=reference_token(model, reference),
        x_T=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
        unconditional_guidance_scale=5.0,
        unconditional_conditioning=model.learnable_vector,
        test_model_kwargs={"inpaint_image": inpaint[:, :4], "inpaint_mask": inpaint[:, 4:]},
        verbose=False,
    )
    return latents


@pytest.mark.parametrize("name", ["plms", "ddim"])
def test_a_diffusers_pipeline_and_ours_give_the_same_latents(pipe, pipe_folder, toy_config, pictures, name):
    from diffusers import DDIMScheduler

    model = load_model(toy_config, pipe_folder)
    scheduler = pipe.scheduler
    if name == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False)
    theirs = their_latents(pipe, pictures, steps=10)
    pipe.scheduler = scheduler
    ours = our_latents(model, pictures, 10, {"plms": PLMSSampler, "ddim": DDIMSampler}[name])
    assert theirs.abs().max() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


def their_pipeline(folder):
    """As the README says it."""
    (snippet,) = re.findall(r"```python\n(import diffusers.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    name = "checkpoints/paint-by-example-diffusers"
    assert name in snippet
    names: dict = {}
    exec(compile(snippet.replace(name, str(folder)), "README.md", "exec"), names)
    return names["pipe"]


def test_diffusers_loads_what_we_write(toy_config, pictures, tmp_path):
    """Ours to theirs: random weights of ours, every one of them non-zero."""
    from ldm.util import instantiate_from_config

    torch.manual_seed(2)
    model = instantiate_from_config(toy_config["model"]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path / "ours"
    write_checkpoint(model.state_dict(), folder, toy_config)
    pipe = their_pipeline(folder)
    ours = our_latents(model, pictures, 10, PLMSSampler)
    assert (ours - their_latents(pipe, pictures, steps=10)).abs().max() < 1e-4 * max(1, ours.abs().max())
    assert pipe.vae.config.scaling_factor == 0.18215
    same(read_checkpoint(folder), model.state_dict())  # and back again, to the bit


def test_from_diffusers_and_back_to_the_bit(pipe_folder, toy_config, tmp_path):
    tensors = read_checkpoint(pipe_folder)
    write_checkpoint(tensors, tmp_path / "m.ckpt")
    write_checkpoint(read_checkpoint(tmp_path / "m.ckpt"), tmp_path / "again", toy_config)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        a, b = (load_file(folder / part / f"{stem}.safetensors") for folder in (pipe_folder, tmp_path / "again"))
        same(a, b)
    same(read_checkpoint(tmp_path / "again"), tensors)


def test_the_hubs_older_layouts(pipe_folder, tmp_path):
    """Pickled .bin weights, `vision_model.` in the image encoder's names, older names of the VAE's attention."""
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(pipe_folder, folder)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("image_encoder", "")):
        file = next((folder / part).glob("*.safetensors"))
        tensors = load_file(file)
        if part == "vae":
            old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for new, name in old.items():
                tensors = {
                    key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in tensors.items()
                }
        if part == "image_encoder" and not any("vision_model" in name for name in tensors):
            tensors = {
                name.replace("model.", "model.vision_model.", 1) if name.startswith("model.") else name: t
                for name, t in tensors.items()
            }
        file.unlink()
        torch.save(tensors, folder / part / f"{stem or 'pytorch_model'}.bin")
    same(read_checkpoint(folder), read_checkpoint(pipe_folder))


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    """A random Stable Diffusion v1 folder, made by diffusers alone, without a tokenizer."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(5)
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=99,
        projection_dim=64,
    )
    pipe = StableDiffusionPipeline(
        vae=toy_autoencoder(),
        text_encoder=CLIPTextModel(text),
        tokenizer=None,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=40,
            attention_head_dim=4,
        ),
        scheduler=toy_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("sd") / "sd"
    pipe.save_pretrained(folder)
    return folder


def test_stable_diffusion_folders_both_ways(sd_folder, golden_config, tmp_path):
    from diffusers import StableDiffusionPipeline

    tensors = read_checkpoint(sd_folder)
    assert tensors[FIRST_CONV].shape[1] == 4
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in tensors
    write_checkpoint(tensors, tmp_path / "sd.ckpt")
    write_checkpoint(read_checkpoint(tmp_path / "sd.ckpt"), tmp_path / "again", golden_config)
    a, b = (
        StableDiffusionPipeline.from_pretrained(folder, tokenizer=None) for folder in (sd_folder, tmp_path / "again")
    )
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 40)
    with torch.no_grad():
        assert torch.equal(a.unet(x, t, context).sample, b.unet(x, t, context).sample)
        assert torch.equal(a.vae.decode(x).sample, b.vae.decode(x).sample)
        ids = torch.arange(7)[None]
        assert torch.equal(a.text_encoder(ids).last_hidden_state, b.text_encoder(ids).last_hidden_state)


# ------------------------------------------------------------------------------------------------ recipes


@torch.no_grad()
def test_widened_the_prior_is_unchanged(sd_folder, golden_config, tmp_path, script):
    from diffusers import UNet2DConditionModel

    from ldm.util import instantiate_from_config

    code, _, _ = script("modify_checkpoints", "--input", sd_folder, "--output", tmp_path / "wide.ckpt")
    assert code == 0
    wide = read_checkpoint(tmp_path / "wide.ckpt")
    assert wide[FIRST_CONV].shape == (32, 9, 3, 3) and not wide[FIRST_CONV][:, 4:].any()
    unet = instantiate_from_config(golden_config["model"]["params"]["unet_config"]).eval()
    unet.load_state_dict({name.removeprefix(UNET): t for name, t in wide.items() if name.startswith(UNET)})
    theirs = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    x, t, context = torch.randn(1, 9, 8, 8), torch.tensor([10]), torch.randn(1, 7, 40)
    torch.testing.assert_close(unet(x, t, context), theirs(x[:, :4], t, context).sample, rtol=0, atol=2e-5)


def test_widening_twice_is_refused(tensors):
    with pytest.raises(UserError, match="takes 9 input channels already"):
        widen(tensors)


def test_add_difference(tensors, sd_folder):
    base = {name: t for name, t in tensors.items()}
    base[FIRST_CONV] = tensors[FIRST_CONV][:, :4] * 0.5
    tuned = {name: t + 0.25 if t.is_floating_point() else t for name, t in base.items()}
    out = add_difference(tensors, tuned, base)
    torch.testing.assert_close(out[FIRST_CONV][:, :4], tensors[FIRST_CONV][:, :4] + 0.25)
    assert torch.equal(out[FIRST_CONV][:, 4:], tensors[FIRST_CONV][:, 4:])
    name = "first_stage_model.decoder.conv_in.bias"
    torch.testing.assert_close(out[name], tensors[name] + 0.25)
    assert torch.equal(out["learnable_vector"], tensors["learnable_vector"])
    same(add_difference(tensors, base, base), tensors)
    with pytest.raises(UserError, match="has the shapes"):  # the models swapped
        add_difference(base, tensors, tensors)
    with pytest.raises(UserError, match="A has no UNet"):
        add_difference({"a": torch.ones(1)}, tuned, base)
    with pytest.raises(UserError, match="not in B"):
        add_difference(tensors, {}, base)
    with pytest.raises(UserError, match="has the shapes"):
        add_difference(tensors, tuned, {**base, name: torch.zeros(3)})


def test_scripts_convert_and_add(tensors, tmp_path, script):
    a, b, c = (tmp_path / f"{x}.safetensors" for x in "abc")
    for path in (a, b, c):
        write_checkpoint(tensors, path)
    args = ("--add_difference", "--a", a, "--b", b, "--c", c, "--output", tmp_path / "out.ckpt")
    assert script("modify_checkpoints", *args)[0] == 0
    same(read_checkpoint(tmp_path / "out.ckpt"), tensors)
    code, _, err = script("modify_checkpoints", "--add_difference", "--a", a)
    assert code == 2 and "needs --a, --b, --c and --output" in err
    for flags in (("--a", a), ("--add_difference", "--a", a, "--b", b, "--c", c, "--output", a, "--ema")):
        code, _, err = script("modify_checkpoints", *flags)
        assert code == 2 and "--add_difference; " in err
    assert script("convert_checkpoint", tmp_path / "out.ckpt", tmp_path / "half.safetensors", "--half")[0] == 0
    same(read_checkpoint(tmp_path / "half.safetensors"), halve(tensors))
    lightning_file(tensors, tmp_path / "big.ckpt")
    assert script("convert_checkpoint", tmp_path / "big.ckpt", tmp_path / "small.ckpt")[0] == 0
    content = torch.load(tmp_path / "small.ckpt", weights_only=True)
    assert set(content) == {"state_dict"}


def test_a_safetensors_header_that_begins_like_a_web_page(tmp_path):
    """The first byte is the low one of the header's length, which may be that of '<'."""
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(1)}, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length] + b" " * ((ord("<") - length) % 256)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    assert path.read_bytes()[:1] == b"<"
    assert list(read_checkpoint(path)) == ["w"]


def test_tensors_of_other_kinds_are_left_out(tensors, tmp_path):
    """Sparse, quantised and float8 tensors of a file are no weights of ours; the others are read."""
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    torch.save({"state_dict": {**tensors, **others}}, tmp_path / "m.ckpt")
    same(read_checkpoint(tmp_path / "m.ckpt"), tensors)


def test_in_place_conversion_is_safe(tensors, tmp_path, script):
    path = tmp_path / "model.safetensors"
    write_checkpoint(tensors, path)
    write_checkpoint(halve(read_checkpoint(path)), path)  # read lazily from the file it replaces
    same(read_checkpoint(path), halve(tensors))
    code, _, err = script("convert_checkpoint", path, tmp_path / "." / path.name, "--half")
    assert code == 2 and "is the input itself" in err


# ------------------------------------------------------------------------------------------------ what is wrong


def damaged(tmp_path, tensors):
    good_ckpt, good_st = tmp_path / "good.ckpt", tmp_path / "good.safetensors"
    torch.save({"state_dict": tensors}, good_ckpt)
    save_file(tensors, good_st)
    yield "truncated.ckpt", good_ckpt.read_bytes()[:-4000], "truncated or damaged"
    yield "truncated.safetensors", good_st.read_bytes()[:-4000], "truncated or damaged"
    yield "head.safetensors", good_st.read_bytes()[:40], "truncated or damaged"
    yield "page.ckpt", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not a checkpoint"
    yield "empty.ckpt", b"", "is empty"
    yield "text.ckpt", b"hello, this is no checkpoint at all", "neither a .ckpt nor a .safetensors"
    yield "pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"
    yield "other.pt", pickled({"a": 1}, tmp_path), "has no tensors"
    yield "list.pt", pickled([torch.ones(1)], tmp_path), "has no tensors"


def pickled(content, tmp_path):
    torch.save(content, tmp_path / "content")
    return (tmp_path / "content").read_bytes()


def test_damaged_files_get_one_sentence(tensors, tmp_path):
    for name, content, words in damaged(tmp_path, tensors):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_checkpoint(path)
        assert words in str(error.value) and name in str(error.value), str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "missing.ckpt")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="no unet and vae"):
        read_checkpoint(tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path)


def test_loading_is_strict_and_names_what_is_wrong(tensors, golden_config, tmp_path):
    def load(changed):
        save_file(changed, tmp_path / "m.safetensors")
        with pytest.raises(UserError) as error:
            load_model(golden_config, tmp_path / "m.safetensors")
        assert "m.safetensors" in str(error.value)
        return str(error.value)

    without = {name: t for name, t in tensors.items() if not name.startswith("cond_stage_model.mapper")}
    assert "it lacks 60 tensors (cond_stage_model.mapper.resblocks.0.attn.c_proj.bias, " in load(without)
    assert "it has in excess 1 tensor (extra.weight)" in load({**tensors, "extra.weight": torch.ones(1)})
    message = load({**tensors, "proj_out.weight": torch.ones(7, 48)})
    assert "proj_out.weight is (7, 48) and not (40, 48)" in message
    narrow = load({**tensors, FIRST_CONV: tensors[FIRST_CONV][:, :4].contiguous()})
    assert "scripts/modify_checkpoints.py" in narrow
    for kind in (torch.int8, torch.int64):
        assert "not a float" in load({**tensors, "proj_out.bias": tensors["proj_out.bias"].to(kind)})
    assert "another noise schedule" in load({**tensors, "alphas_cumprod": tensors["alphas_cumprod"] ** 2})
    # none of transformers' renaming goes unseen
    assert "lacks" in load({name: t for name, t in tensors.items() if "post_layernorm" not in name})


def test_what_follows_from_the_config_may_be_absent(tensors, golden_config, tmp_path):
    lean = {name: t for name, t in tensors.items() if name not in BUFFERS and not name.endswith("position_ids")}
    save_file(lean, tmp_path / "lean.safetensors")
    same(load_model(golden_config, tmp_path / "lean.safetensors").state_dict(), tensors)


def test_a_diffusers_folder_is_written_with_the_config_that_fits(tensors, pipe_folder, toy_config, tmp_path):
    toy = read_checkpoint(pipe_folder)
    for config in (ROOT / "configs/tiny.yaml", ROOT / "configs/v1.yaml"):
        with pytest.raises(UserError, match="does not fit the config"):
            write_checkpoint(toy, tmp_path / "new", config)
    toy.pop("model.diffusion_model.middle_block.0.in_layers.2.weight")
    with pytest.raises(UserError, match="lacks 1 tensor"):
        write_checkpoint(toy, tmp_path / "new", toy_config)
    with pytest.raises(UserError, match="lacks"):
        write_checkpoint({"a": torch.ones(1)}, tmp_path / "new", toy_config)
    for name in ("m.safetensor", "m.bin", "m.onnx"):
        with pytest.raises(UserError, match="no format ends in"):
            write_checkpoint(tensors, tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", '"text"', "{}", '{"beta_schedule": "linear", "beta_start": 1}'])
def test_a_folder_with_a_damaged_schedule(pipe_folder, tmp_path, content):
    import shutil

    shutil.copytree(pipe_folder, tmp_path / "pipe")
    (tmp_path / "pipe/scheduler/scheduler_config.json").write_text(content)
    with pytest.raises(UserError, match=r"scheduler_config\.json: gives no noise schedule"):
        read_checkpoint(tmp_path / "pipe")


def test_a_folder_with_tensors_that_cannot_be_translated(pipe_folder, tmp_path):
    import shutil

    shutil.copytree(pipe_folder, tmp_path / "pipe")
    file = tmp_path / "pipe/image_encoder/model.safetensors"
    save_file({**load_file(file), "mapper.blocks.0.attn1.to_q.weight": torch.ones(3, 2)}, file)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(tmp_path / "pipe")


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
    assert "writing failed" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


# ------------------------------------------------------------------------------------------------ the hub


class Hub(BaseHTTPRequestHandler):
    """The two requests of a download from the hub."""

    content = b""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if re.fullmatch(r"/Fantasy-Studio/Paint-by-Example/resolve/(main|0{40})/model\.ckpt", self.path):
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


def find(env, name="'hub'"):
    code = f"""
from ldm.cli.command import command
@command
def main():
    from ldm.checkpoint.locate import find_checkpoint
    from ldm.checkpoint import read_checkpoint
    print(len(read_checkpoint(find_checkpoint({name}))))
main()"""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_released_model_comes_from_the_hub(tensors, tmp_path):
    Hub.content = pickled({"state_dict": tensors}, tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = find(env)
    server.shutdown()
    assert done.stdout.strip() == str(len(tensors)), done.stderr
    # from now on without a network
    done = find(env | {"HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip() == str(len(tensors)), done.stderr


def test_a_download_that_breaks_off_gets_one_sentence(tmp_path):
    class BreaksOff(Hub):
        content = bytes(1000)

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.content[:10])

    server = ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = find(env)
    server.shutdown()
    assert done.returncode == 2
    assert "could not be fetched from the hub" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="off"),
        pytest.param(
            {"HF_ENDPOINT": "http://127.0.0.1:9"}, id="none", marks=pytest.mark.slow
        ),  # the client tries again
    ],
)
def test_offline_it_says_where_to_get_the_model_and_where_to_put_it(tmp_path, env):
    done = find({"HF_HOME": str(tmp_path)} | env)
    assert done.returncode == 2
    assert "resolve/main/model.ckpt" in done.stderr and "checkpoints/model.ckpt" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ memory


MEMORY = """
import sys
from omegaconf import OmegaConf
from ldm.checkpoint import load_model

def held(kind):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kind))

config = OmegaConf.load("configs/v1.yaml")
width = int(sys.argv[2])
config.model.params.unet_config.params.model_channels = width
config.model.params.first_stage_config.params.ddconfig.ch = max(32, width * 2 // 5)
before = held("RssAnon")
model = load_model(config, sys.argv[1])
size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
assert all(bool(p.detach().sum().isfinite()) for p in model.parameters())  # every page is read
print((held("RssAnon") - before) / size, held("VmHWM") / size)
"""


def memory_of(path, width):
    """Load v1.yaml's model with a UNet of `width` channels -> memory of its own over its size, peak over its size."""
    command = [sys.executable, "-c", MEMORY, str(path), str(width)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    own, peak = map(float, done.stdout.split()[-2:])
    print(f"{path.name}: {own:.2f} of its own, peak {peak:.2f} times the model's size")
    return own, peak


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
def test_a_model_takes_its_files_memory_over(tmp_path, name):
    """The full-size model's CLIP tower with a narrow UNet and autoencoder, 1.5 GB of zeros."""
    from ldm.checkpoint.load import empty_model
    from ldm.checkpoint.locate import DEFAULT_CONFIG
    from ldm.util import load_config

    config = load_config(DEFAULT_CONFIG)
    config.model.params.unet_config.params.model_channels = 64
    config.model.params.first_stage_config.params.ddconfig.ch = 32  # GroupNorm's 32 groups
    tensors = {name: torch.zeros(t.shape) for name, t in empty_model(config).state_dict().items()}
    tensors = {name: t for name, t in tensors.items() if name not in BUFFERS}
    write_checkpoint(tensors, tmp_path / name)
    own, _ = memory_of(tmp_path / name, 64)
    (tmp_path / name).unlink()
    assert own < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full.ckpt", "full.safetensors"])
def test_the_full_size_model_loads_in_little_more_than_its_size(tmp_path, name):
    """5.2 GB: peak memory of the process, Python and torch included, below 1.4 times the model with every page read."""
    path = tmp_path / name
    subprocess.run([sys.executable, "scripts/random_checkpoint.py", "configs/v1.yaml", path], cwd=ROOT, check=True)
    own, peak = memory_of(path, 320)
    path.unlink()
    assert own < 0.2 and peak < 1.4

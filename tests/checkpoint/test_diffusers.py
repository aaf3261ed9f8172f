"""diffusers' folders, both ways, against diffusers itself."""

import os
import shutil
import sys

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoint import load_model, read_checkpoint
from ldm.checkpoint.load import random_model, write_checkpoint
from ldm.checkpoint.names import FIRST_CONV, MAPPER, TEXT
from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor
from ldm.models.diffusion.conditioning import inpaint_channels, reference_token
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.util import UserError, instantiate_from_config
from tests.checkpoint.conftest import assert_same_tensors
from tests.conftest import ROOT


@pytest.fixture
def pictures(example):
    image = example["image"].convert("RGB").resize((32, 32))
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    mask[8:24, 8:32] = 255  # whole latent pixels: diffusers resizes masks by nearest neighbour
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
    """The pipeline inside diffusers, deprecated there, with the components of a folder."""
    from diffusers import AutoencoderKL, PaintByExamplePipeline, PNDMScheduler, UNet2DConditionModel

    encoder_class = sys.modules[PaintByExamplePipeline.__module__].PaintByExampleImageEncoder
    return PaintByExamplePipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        image_encoder=encoder_class.from_pretrained(folder, subfolder="image_encoder"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=PNDMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
    )


@pytest.mark.integration
def test_diffusers_loads_what_we_write(toy_config, pictures, tmp_path):
    """Ours to theirs: random weights of ours, every one of them non-zero."""
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
    assert_same_tensors(read_checkpoint(folder), model.state_dict())  # and back again, to the bit


def test_from_diffusers_and_back_to_the_bit(pipe_folder, toy_config, tmp_path):
    tensors = read_checkpoint(pipe_folder)
    write_checkpoint(tensors, tmp_path / "m.ckpt")
    write_checkpoint(read_checkpoint(tmp_path / "m.ckpt"), tmp_path / "again", toy_config)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        a, b = (load_file(folder / part / f"{stem}.safetensors") for folder in (pipe_folder, tmp_path / "again"))
        assert_same_tensors(a, b)
    assert_same_tensors(read_checkpoint(tmp_path / "again"), tensors)


def test_the_hubs_older_layouts(pipe_folder, tmp_path):
    """Pickled .bin weights, `vision_model.` in the image encoder's names, older names of the VAE's attention."""
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
    assert_same_tensors(read_checkpoint(folder), read_checkpoint(pipe_folder))


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


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no unet and vae folders"):
        read_checkpoint(tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match="unet has no weights"):
        read_checkpoint(tmp_path)


def test_a_diffusers_folder_is_written_with_the_config_that_fits(tensors, pipe_folder, toy_config, tmp_path):
    toy = read_checkpoint(pipe_folder)
    for config in (ROOT / "configs/tiny.yaml", ROOT / "configs/v1.yaml"):
        with pytest.raises(UserError, match="does not fit the config"):
            write_checkpoint(toy, tmp_path / "new", config)
    toy.pop("model.diffusion_model.middle_block.0.in_layers.2.weight")
    with pytest.raises(UserError, match="lacks 1 tensor"):
        write_checkpoint(toy, tmp_path / "new", toy_config)
    with pytest.raises(UserError, match=r"does not fit the config \(it lacks"):
        write_checkpoint({"a": torch.ones(1)}, tmp_path / "new", toy_config)
    for name in ("m.safetensor", "m.bin", "m.onnx"):
        with pytest.raises(UserError, match="not a known format"):
            write_checkpoint(tensors, tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", '"text"', "{}", '{"beta_schedule": "linear", "beta_start": 1}'])
def test_a_folder_with_a_damaged_schedule(pipe_folder, tmp_path, content):
    shutil.copytree(pipe_folder, tmp_path / "pipe")
    (tmp_path / "pipe/scheduler/scheduler_config.json").write_text(content)
    with pytest.raises(UserError, match=r"scheduler_config\.json has no noise schedule"):
        read_checkpoint(tmp_path / "pipe")


def test_a_folder_with_tensors_that_cannot_be_translated(pipe_folder, tmp_path):
    shutil.copytree(pipe_folder, tmp_path / "pipe")
    file = tmp_path / "pipe/image_encoder/model.safetensors"
    save_file({**load_file(file), "mapper.blocks.0.attn1.to_q.weight": torch.ones(3, 2)}, file)
    with pytest.raises(UserError, match=r"pipe is damaged .*: download it again"):
        read_checkpoint(tmp_path / "pipe")


RESNET = {"embed_dim": 48, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "heads": 8}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resnet": RESNET}, "has a CLIP that is a residual network, which"),
        ({"bottleneck": False}, "has no mapper, which"),
    ],
)
def test_models_that_a_diffusers_folder_cannot_hold(toy_config, tmp_path, change, message):
    config = OmegaConf.merge(toy_config, {})
    config["model"]["params"]["cond_stage_config"]["params"].update(change)
    if "resnet" in change:
        del config["model"]["params"]["cond_stage_config"]["params"]["vision_config"]
    model = random_model(config)
    with pytest.raises(UserError, match=message):
        write_checkpoint(model.state_dict(), tmp_path / "new", config)
    assert not os.listdir(tmp_path)


def test_deeper_transformers(toy_config, tmp_path):
    from diffusers import UNet2DConditionModel

    config = OmegaConf.merge(toy_config, {"model": {"params": {"unet_config": {"params": {"transformer_depth": 2}}}}})
    model = random_model(config)
    write_checkpoint(model.state_dict(), tmp_path / "new", config)
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "new/unet")
    x, t, context = torch.randn(1, 9, 8, 8), torch.tensor([10]), torch.randn(1, 1, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, t, context).sample, model.apply_model(x, t, context), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lost", ["encoder.layers.0.mlp.fc1.bias", "encoder.layers.0.", "embeddings.token", "encoder."])
def test_a_text_tower_that_is_not_whole(sd_folder, golden_config, tmp_path, lost):
    tensors = {name: t for name, t in read_checkpoint(sd_folder).items() if not name.startswith(TEXT + lost)}
    with pytest.raises(UserError, match=r"text tower lacks \d+ tensors? \(text_model\..*: download it again"):
        write_checkpoint(tensors, tmp_path / "new", golden_config)


def test_a_model_that_lost_its_mapper_is_not_taken_for_stable_diffusion(pipe_folder, toy_config, tmp_path):
    for lost in (MAPPER, (MAPPER, "learnable_vector"), (MAPPER, "learnable_vector", "proj_out")):
        tensors = {name: t for name, t in read_checkpoint(pipe_folder).items() if not name.startswith(lost)}
        with pytest.raises(UserError, match=r"it lacks \d+ tensors \(cond_stage_model\.mapper"):
            write_checkpoint(tensors, tmp_path / "new", toy_config)

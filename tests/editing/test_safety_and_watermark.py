"""Watermark and safety checker act on the output; the asymmetric decoder keeps the photo; networks in turn."""

import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from ldm.conventions import image_to_tensor
from ldm.editing.asymmetric_decoder import AsymmetricDecoder
from ldm.editing.options import Sampling
from ldm.editing.safety import SafetyChecker
from ldm.fast.networks import Networks
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT

FAST = {"steps": 2, "progress": False, "height": 64, "width": 96}
MODEL = ["--config", ROOT / "configs/tiny.yaml", "--device", "cpu", "--ddim_steps", 1, "--H", 64, "--W", 96]
FILES = ["--image_path", ROOT / "examples/image/example_2.jpg", "--mask_path", ROOT / "examples/mask/example_2.png"]
FILES += ["--reference_path", ROOT / "examples/reference/example_2.jpg"]


# ------------------------------------------------------------------------------------------------ watermark


def test_the_watermark_is_in_the_written_picture(script, tiny, tmp_path):
    pytest.importorskip("imwatermark")
    from ldm.editing.watermark import has_watermark

    for flag, wanted in (("--watermark", True), ("--no-watermark", False)):
        code, _, err = script("inference", *FILES, *MODEL, "--ckpt", tiny, "--outdir", tmp_path / flag, flag)
        assert code == 0, err
        picture = Image.open(tmp_path / flag / "results/example_2_321.png")
        assert has_watermark(picture) == wanted
        if wanted:
            jpeg = io.BytesIO()
            picture.save(jpeg, "JPEG", quality=95)
            assert has_watermark(Image.open(jpeg))
            assert not has_watermark(picture.crop((3, 3, 500, 300)))  # its places are counted from the corner
    with pytest.raises(UserError, match="too small for the watermark"):
        from ldm.editing.watermark import embed

        embed(Image.new("RGB", (100, 300)))


def test_without_its_library_the_watermark_says_what_to_install(script, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imwatermark", None)
    code, _, err = script("inference", *FILES, *MODEL, "--ckpt", tiny, "--outdir", tmp_path / "out", "--watermark")
    assert code == 2 and "pip install --no-deps invisible-watermark" in err and not (tmp_path / "out").exists()


def test_a_photo_too_small_for_the_watermark_is_an_error_before_the_model_is_read(script, tmp_path):
    pytest.importorskip("imwatermark")
    Image.new("RGB", (300, 255)).save(tmp_path / "small.png")
    more = ["--image_path", tmp_path / "small.png", "--box", "0,0,50,50", "--ckpt", "none.ckpt", "--watermark"]
    code, _, err = script("inference", "--reference_path", FILES[-1], *more, *MODEL, "--outdir", tmp_path / "out")
    assert code == 2 and "300 x 255, is too small for the watermark" in err and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ safety checker


@pytest.fixture(scope="module")
def checker_folder(tmp_path_factory):
    """A small one of the published layout: what it flags depends on concept 0's threshold alone."""
    folder = tmp_path_factory.mktemp("safety")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=small | {"image_size": 32, "patch_size": 8}, text_config=small, projection_dim=16)
    StableDiffusionSafetyChecker(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {  # as published, from before transformers 5
        "vision_model." + name if name.startswith("vision_model.") else name: tensor for name, tensor in weights.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_thresholds(folder, new, value):
    shutil.copytree(folder, new)
    weights = load_file(new / "model.safetensors")
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        weights[name].fill_(value)
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    return new


def test_a_flagged_window_becomes_black_in_the_region_only(checker_folder, tiny, edit, example, tmp_path):
    plain = edit(**example, **FAST)
    mask = np.asarray(example["mask"]) > 127
    for name, value, flagged in (("all", -2.0, True), ("none", 2.0, False)):
        folder = with_thresholds(checker_folder, tmp_path / name, value)
        checked = PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, "cpu", safety_checker=folder)
        out = checked(**example, **FAST)
        assert (out.tobytes() == plain.tobytes()) != flagged
        if flagged:
            pixels, photo = np.asarray(out), np.asarray(example["image"])
            assert np.array_equal(pixels[~mask], photo[~mask])
            assert (pixels[mask] == 0).mean() > 0.8  # except the band along its edge


def test_the_checker_sees_each_picture_as_clip_does(checker_folder, example):
    """Against transformers' own preprocessing, one picture unsafe beside a safe one."""
    checker = SafetyChecker.load(checker_folder)
    pictures = [example[name].convert("RGB").resize((96, 64)) for name in ("image", "reference")]
    processor = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False, resample=2)
    pixels = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = checker.network.visual_projection(checker.network.vision_model(pixels)[1])
        embeds = embeds / embeds.norm(dim=1, keepdim=True)
        concept = embeds[0] - embeds[1]
        checker.network.concept_embeds.copy_(concept.expand(17, -1))
        checker.network.concept_embeds_weights.fill_(0.0)
        checker.network.special_care_embeds_weights.fill_(2.0)
    tensors = torch.stack([image_to_tensor(picture) for picture in pictures])
    assert checker.flagged(tensors) == [True, False]
    out = checker(tensors)
    assert (out[0] == -1).all() and torch.equal(out[1], tensors[1])


def test_checkers_that_cannot_be_loaded(checker_folder, script, tiny, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(checker_folder, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, words in (
        (tmp_path / "nowhere", "has no config.json"),
        (broken, "lacks 1 tensor"),
        ("hub", "connect to"),
    ):
        code, _, err = script("inference", *FILES, *MODEL, "--ckpt", tiny, "--safety_checker", source)
        message = [line for line in err.splitlines() if line.startswith("inference.py: error: safety checker")]
        assert code == 2 and len(message) == 1 and words in message[0], err


# ------------------------------------------------------------------------------------------------ asymmetric decoder


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    """Random weights for the tiny model's latents: 4 channels, a factor of 8."""
    folder = tmp_path_factory.mktemp("asymmetric")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"down_block_out_channels": (8, 8, 16, 16), "up_block_out_channels": (8, 8, 16, 16)}
    AsymmetricAutoencoderKL(**blocks, **widths, norm_num_groups=4).save_pretrained(folder)
    return folder


def test_the_asymmetric_decoder_agrees_with_diffusers(decoder_folder, tiny, edit, example):
    """The pipeline's picture is what diffusers' class makes of its latent, photo and mask."""
    steps = []
    with_it = PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, "cpu", decoder=decoder_folder)
    inputs = edit.prepare(**example, height=64, width=96)
    out = with_it.sample(inputs, [321], Sampling(steps=2), progress=False, callback=steps.append)
    theirs = AsymmetricAutoencoderKL.from_pretrained(decoder_folder)
    z = steps[-1].x / edit.model.scale_factor
    with torch.no_grad():
        wanted = theirs.decode(z, image=inputs.image, mask=1 - inputs.mask).sample  # their mask: 1 = paint
    torch.testing.assert_close(out, wanted)
    assert (out - edit.sample(inputs, [321], Sampling(steps=2), progress=False)).abs().max() > 0.1


def test_the_asymmetric_decoder_works_where_the_latent_is_and_stays_at_home(decoder_folder):
    decoder = AsymmetricDecoder.load(decoder_folder)
    z, image = torch.zeros(1, 4, 8, 12, device="meta"), torch.zeros(1, 3, 64, 96, device="meta")
    assert decoder(z, image, image[:, :1]).device.type == "meta"
    assert {p.device.type for p in decoder.autoencoder.parameters()} == {"cpu"}


def test_the_asymmetric_decoder_tiles_latent_photo_and_mask_together(monkeypatch):
    class Mixture:  # of a latent, a photo and a mask, pixel by pixel
        config = SimpleNamespace(up_block_out_channels=[1] * 4)
        eval = requires_grad_ = lambda self, *_: self
        modules = staticmethod(list)

        def decode(self, z, image, mask):
            sizes.append(z.shape[-2:])
            large = z[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
            return SimpleNamespace(sample=image * (1 - mask) + mask * large)

    sizes = []
    z, image, mask = torch.randn(2, 4, 20, 12), torch.randn(2, 3, 160, 96), torch.rand(2, 1, 160, 96)
    whole = AsymmetricDecoder(Mixture())(z, image, mask)
    monkeypatch.setattr("ldm.editing.asymmetric_decoder.TILE", 8)
    monkeypatch.setattr("ldm.editing.asymmetric_decoder.OVERLAP", 3)
    torch.testing.assert_close(AsymmetricDecoder(Mixture())(z, image, mask), whole)
    assert sizes[0] == (20, 12) and len(sizes) > 6 and all(max(size) == 8 for size in sizes[1:])


def test_decoders_that_do_not_fit(decoder_folder, tmp_path):
    with pytest.raises(UserError, match="for latents of 4 channels and factor 8, but the model's have 4 and 4"):
        AsymmetricDecoder.load(decoder_folder, factor=4)
    with pytest.raises(UserError, match=r"has no config\.json"):
        AsymmetricDecoder.load("asymmetric")
    shutil.copy(decoder_folder / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, which might run code")
    with pytest.raises(UserError, match="cannot be loaded"):
        AsymmetricDecoder.load(tmp_path)


# ------------------------------------------------------------------------------------------------ small machines


def test_what_overflows_in_half_precision_is_decoded_in_float32(edit, example, monkeypatch):
    half = PaintByExample(edit.model, "bf16")
    plain = half(**example, **FAST)
    monkeypatch.setattr(half.networks.first_stage, "decode", lambda z: torch.full((1, 3, 64, 96), torch.nan))
    assert half(**example, **FAST).tobytes() != plain.tobytes()
    difference = np.asarray(half(**example, **FAST)).astype(int) - np.asarray(plain)
    assert np.abs(difference).max() < 16


def test_offload_on_the_cpu_changes_nothing(tiny, edit, example):
    offloaded = PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, "cpu", offload=True)
    assert offloaded(**example, **FAST).tobytes() == edit(**example, **FAST).tobytes()
    with pytest.raises(UserError, match="--offload"):
        PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, "cpu", offload=True, compiled=True)


def test_networks_move_only_while_they_work(edit, monkeypatch):
    """Seen on a device of which PyTorch knows the shapes alone."""
    networks = Networks(edit.model, offload=torch.device("meta"))
    assert networks.device.type == "meta" and networks.first_stage.quant_conv.weight.device.type == "cpu"
    with networks.unet_on_device():
        assert {p.device.type for p in networks.unet.parameters()} == {"meta"}
        assert {p.device.type for p in networks.first_stage.parameters()} == {"cpu"}
    assert {p.device.type for p in networks.unet.parameters()} == {"cpu"}
    context = networks.get_learned_conditioning(torch.zeros(1, 3, 224, 224, device="meta"))
    out = networks.decode_first_stage(torch.zeros(1, 4, 8, 8, device="meta"))
    assert context.device.type == out.device.type == "meta"
    assert {p.device.type for p in edit.model.parameters()} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloaded_edits_are_the_same(tiny, example):
    config = ROOT / "configs/tiny.yaml"
    for precision in ("full", "bf16"):
        plain = PaintByExample.load(config, tiny, "cuda", precision)(**example, **FAST)
        offloaded = PaintByExample.load(config, tiny, "cuda", precision, offload=True)
        difference = np.asarray(offloaded(**example, **FAST)).astype(int) - np.asarray(plain)
        assert np.abs(difference).max() <= 1
        assert {p.device.type for p in offloaded.model.parameters()} == {"cpu"}

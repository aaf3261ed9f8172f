"""Control by networks of diffusers: against diffusers' own UNet with the same weights, in rectangles, and in edits."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoint.load import load_model, read_checkpoint, write_checkpoint
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Loading, Placement
from ldm.editing.regions import Region
from ldm.fast.region import Rectangle, RegionEps
from ldm.fast.unet import FastUNet, prepare_edit, timestep_shifts
from ldm.methods.control import Control
from ldm.models.diffusion.denoiser import guided_eps, make_denoiser
from ldm.models.diffusion.presets import PRESETS
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT, edited_pixels

CONFIG = ROOT / "configs/tiny.yaml"
CONTROLNET = {  # for the UNet of configs/tiny.yaml
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 40,
    "attention_head_dim": 4,
    "conditioning_embedding_out_channels": (8, 8, 8, 8),
}
ADAPTER = {"channels": [32, 64, 64], "num_res_blocks": 1}
WIDTH = 24  # of the latent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Networks of random weights, none of them zero."""
    folder = tmp_path_factory.mktemp("control")
    torch.manual_seed(0)
    networks = {
        "controlnet": ControlNetModel(**CONTROLNET),
        "adapter": T2IAdapter(**ADAPTER),
        "grey": T2IAdapter(in_channels=1, **ADAPTER),
    }
    for name, network in networks.items():
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.1)
        network.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def unets(tiny, tmp_path_factory):
    """The toy UNet in float64: ours, and diffusers' of the folder that our converter writes."""
    folder = tmp_path_factory.mktemp("theirs")
    write_checkpoint(read_checkpoint(tiny), folder / "toy", CONFIG)
    theirs = UNet2DConditionModel.from_pretrained(folder / "toy", subfolder="unet").double().eval()
    return load_model(CONFIG, tiny).model.diffusion_model.double().eval(), theirs


@pytest.fixture
def inputs():
    shapes = {"x": (2, 4, 16, WIDTH), "inpaint": (2, 5, 16, WIDTH), "c": (2, 1, 40), "v": (1, 1, 40)}
    found = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return found | {"picture": torch.rand(2, 3, 128, 8 * WIDTH, dtype=torch.float64)}


def loaded(folders, kind):
    network = {"controlnet": ControlNetModel, "adapter": T2IAdapter}[kind]
    return network.from_pretrained(folders / kind).double()


def fast_denoiser(unet, fast, rectangle=None):
    shifts = timestep_shifts(unet, 1000, torch.float64)

    def denoiser(inpaint, contexts):
        prepared = prepare_edit(unet, inpaint, contexts, torch.float64)
        if rectangle is None:
            return lambda x, t: fast(x, shifts[t : t + 1], *prepared)
        return RegionEps(
            lambda x, t, area: fast(x, shifts[t : t + 1], *prepared, area), rectangle, 2, NoiseSchedule.linear()
        )

    return denoiser


def their_eps(unet, network, x, inpaint, c, v, picture, scale):
    """A guided evaluation as in diffusers' pipelines: both branches get the residuals."""
    both, contexts, t = torch.cat([x, x]), torch.cat([v.expand(2, -1, -1), c]), torch.tensor(700)
    if isinstance(network, ControlNetModel):
        down, middle = network(both, t, contexts, torch.cat([picture] * 2), conditioning_scale=scale, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    else:
        features = [torch.cat([scale * each] * 2) for each in network(picture)]
        residuals = {"down_intrablock_additional_residuals": features}
    channels = torch.cat([both, torch.cat([inpaint] * 2)], dim=1)
    e_uncond, e_cond = unet(channels, t, contexts, **residuals).sample.chunk(2)
    return e_uncond + 3.0 * (e_cond - e_uncond)


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "fast"])
@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_both_unets_give_what_diffusers_gives(folders, unets, inputs, kind, form):
    (unet, theirs), network = unets, loaded(folders, kind)
    fast = FastUNet(unet, torch.float64, torch.contiguous_format)
    denoiser = make_denoiser(unet) if form == "plain" else fast_denoiser(unet, fast)
    x, inpaint, c, v, picture = inputs.values()
    steer = Control(network, [unet, fast]).steering(picture, 0.7)
    ours = guided_eps(steer(denoiser), inpaint, c, v, 3.0)(x, 700)
    expected = their_eps(theirs, network, **inputs, scale=0.7)
    assert (ours - expected).abs().max() < 1e-6 * expected.abs().max()  # both embed timesteps in float32
    plain = guided_eps(denoiser, inpaint, c, v, 3.0)(x, 700)
    assert (ours - plain).abs().max() > 0.01 * expected.abs().max()
    without = their_eps(theirs, network, **inputs, scale=0.0)
    assert (plain - without).abs().max() < 1e-6 * without.abs().max()  # and nothing stays behind in the UNets


@torch.no_grad()
@pytest.mark.parametrize("kind", ["controlnet", "adapter"])
def test_a_rectangle_gets_its_part_of_the_residuals(folders, unets, inputs, kind):
    """At the same x and t, an evaluation of a rectangle gives the numbers of the one of the whole picture."""
    unet = unets[0]
    fast, rectangle = FastUNet(unet, torch.float64, torch.contiguous_format), Rectangle(4, 12, 8, 20, WIDTH)
    x, inpaint, c, v, picture = inputs.values()
    denoiser = Control(loaded(folders, kind), [fast]).steering(picture, 1.0)(fast_denoiser(unet, fast, rectangle))
    eps = guided_eps(denoiser, inpaint, c, v, 3.0)
    whole, partial = eps(x, 700), eps(x, 700)
    assert (partial - whole).abs().max() < 1e-9 * whole.abs().max()


# ------------------------------------------------------------------------------------------------ edits


@pytest.fixture(scope="module")
def steered(folders, tiny):
    return {
        kind: PaintByExample.load(CONFIG, tiny, "cpu", control=folders / kind)
        for kind in ("controlnet", "adapter", "grey")
    }


def lines(size, seed=0):
    """A picture as of edges."""
    pixels = np.random.default_rng(seed).integers(0, 2, (*size[::-1], 1), np.uint8) * 255
    return Image.fromarray(pixels.repeat(3, axis=2))


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


SHORT = {"height": 64, "width": 64, "progress": False}
WAYS = [{"sampler": name, "steps": 2} for name in ("plms", "ddim", "dpm++", "unipc")]
WAYS += [{"preset": name, "height": 128, "width": 128} for name in PRESETS]


@pytest.mark.parametrize("how", WAYS, ids=lambda how: how.get("preset") or how["sampler"])
def test_every_sampler_and_preset(steered, edit, example, how):
    controlled, how = {"control_image": lines(example["image"].size)}, SHORT | how
    plain = edit(**example, **how)
    assert same(steered["controlnet"](**example, **controlled, **how, control_scale=0), plain)
    assert not same(steered["controlnet"](**example, **controlled, **how), plain)


@pytest.mark.parametrize("how", [{"strength": 0.6}, {"keep_layout": "ddpm"}, {"keep_layout": "ddim"}], ids=str)
def test_other_methods_go_with_it(steered, edit, example, how, monkeypatch):
    monkeypatch.setattr("ldm.methods.inversion.NULL_STEPS", 2)
    controlled, how = {"control_image": lines(example["image"].size)}, SHORT | {"steps": 1, "scale": 2} | how
    plain = edit(**example, **how)
    assert same(steered["controlnet"](**example, **controlled, **how, control_scale=0), plain)
    assert not same(steered["controlnet"](**example, **controlled, **how), plain)


def test_a_picture_depends_only_on_its_own_control(steered, example):
    pictures = [lines(example["image"].size, seed) for seed in (1, 2)]
    how = SHORT | {"steps": 2}
    both = steered["adapter"](**example, seed=5, control_image=pictures, **how)
    assert not same(*both)
    for picture, expected in zip(pictures, both, strict=True):
        alone = steered["adapter"](**example, seed=5, control_image=picture, **how)
        assert np.abs(np.asarray(alone, int) - np.asarray(expected, int)).max() <= 1  # rounding, of other kernels


def test_grey_adapters_and_several_regions_at_once(steered, edit, example):
    picture, how = lines(example["image"].size), SHORT | {"steps": 2}
    grey = steered["grey"](**example, control_image=picture, **how)
    assert same(grey, steered["grey"](**example, control_image=picture.convert("L"), **how))
    regions = [Region(box=(60, 100, 200, 300)), Region(box=(220, 80, 420, 300))]
    two = {"regions": regions, "references": [example["reference"]], "together": True, **how}
    found = steered["adapter"](example["image"], control_image=picture, **two)
    assert not same(found, edit(example["image"], **two))
    with pytest.raises(UserError, match="together does not go with a ControlNet"):
        steered["controlnet"](example["image"], control_image=picture, **two)


def test_the_control_picture_is_cropped_with_the_photo(steered, example):
    """At the photo's size it is cut and resized as the photo is, at another size its own pixels are."""
    photo, large = example["image"].convert("RGB"), example["image"].convert("RGB").resize((1200, 800))
    for control, factor in ((photo, 1), (large, 2)):
        marked = MarkedPhoto.mark(photo, [Region(box=(400, 90, 500, 200))], [example["reference"]], control=control)
        placement = Placement(height=64, width=96)
        plan = steered["adapter"].plan(photo, marked.masks[0], marked.references[0], placement, marked.control)
        box = [factor * edge for edge in plan.place.window]
        assert plan.place.window != (0, 0, *photo.size)
        wanted = np.asarray(control.crop(box).resize((96, 64), Image.Resampling.LANCZOS)) / 255
        found = plan.inputs.control[0].permute(1, 2, 0).numpy()
        assert np.abs(found - wanted)[4:-4, 4:-4].max() < 1e-6  # at its edges it sees what is around


# ------------------------------------------------------------------------------------------------ commands


@pytest.fixture
def edges(tmp_path):
    lines((600, 400)).save(tmp_path / "edges.png")
    return tmp_path / "edges.png"


def test_the_command_and_its_picture_made_again(edit_example, script, folders, edges, tiny, tmp_path):
    flags = ["--control", folders / "controlnet", "--control_image", edges, "--control_scale", 0.5, "--skip_grid"]
    code, _, err = edit_example(tmp_path / "a", tiny, *flags)
    assert code == 0, err
    again = ["--from", tmp_path / "a/results/example_2_321.png", "--outdir", tmp_path / "b", "--skip_grid"]
    code, _, err = script("inference", *again, "--H", 64, "--W", 96, "--device", "cpu")
    assert code == 0, err
    assert np.array_equal(edited_pixels(tmp_path / "a"), edited_pixels(tmp_path / "b"))
    code, _, err = edit_example(tmp_path / "c", tiny, *flags[:2])
    assert code == 2 and "--control and --control_image, a network and its picture, belong together" in err
    Image.new("RGB", (400, 600)).save(edges)
    code, _, err = edit_example(tmp_path / "c", tiny, *flags)
    assert code == 2 and f"control image {edges} is 400 x 600 but the photo is 600 x 400" in err


def test_a_table_has_a_control_picture_in_each_row(script, folders, edges, tiny, tmp_path):
    files = ",".join(str(ROOT / f"examples/{name}/example_2.{end}") for name, end in FILES)
    rows = f"image,mask,reference,out,control_image\n{files},a.png,edges.png\n{files},b.png,\n"
    (tmp_path / "jobs.csv").write_text(rows)
    model = ["--config", CONFIG, "--ckpt", tiny, "--device", "cpu", "--steps", 2, "--control", folders / "adapter"]
    code, out, err = script("edit_batch", tmp_path / "jobs.csv", *model)
    assert code == 2 and "1 picture written" in out and (tmp_path / "a.png").exists()
    assert "line 3: control and control_image, a network and its picture, belong together" in err


FILES = (("image", "jpg"), ("mask", "png"), ("reference", "jpg"))


# ------------------------------------------------------------------------------------------------ what is refused


def test_folders_that_do_not_fit(folders, edit, tmp_path):
    def changed(kind, name, **values):
        shutil.copytree(folders / kind, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text()) | values
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    ControlNetModel(**CONTROLNET | {"cross_attention_dim": 48}).save_pretrained(tmp_path / "wide")
    T2IAdapter(**ADAPTER | {"channels": [32, 64, 96]}).save_pretrained(tmp_path / "deep")
    lacking = shutil.copytree(folders / "adapter", tmp_path / "lacking") / "diffusion_pytorch_model.safetensors"
    save_file({name: t for name, t in load_file(lacking).items() if "conv_in" not in name}, lacking)
    pickled = shutil.copytree(folders / "adapter", tmp_path / "pickled")
    (pickled / "diffusion_pytorch_model.safetensors").rename(pickled / "diffusion_pytorch_model.bin")
    for folder, words in (
        (tmp_path / "wide", "has tokens of width 48, but the model needs 40"),
        (tmp_path / "deep", r"has features of channels \[32, 64, 96\], but the model needs \[32, 64, 64\]"),
        (changed("controlnet", "pooled", global_pool_conditions=True), "has pooled residuals True"),
        (
            changed("adapter", "unet", _class_name="UNet2DModel"),
            "is of the class UNet2DModel: give the folder of a",
        ),
        (changed("adapter", "smaller", channels=[16, 64, 64]), "cannot be loaded"),
        (lacking.parent, r"lacks 2 tensors \(adapter\.conv_in"),
        (pickled, "cannot be loaded"),
        (tmp_path, r"has no config\.json: give the folder of a ControlNet or T2I-Adapter"),
    ):
        with pytest.raises(UserError, match=words):
            Control.load(folder, edit.networks)


def test_what_does_not_go_with_it(steered, edit, example):
    picture = lines(example["image"].size)
    for who, how, words in (
        (steered["adapter"], {}, "belong together: give both, or none"),
        (edit, {"control_image": picture}, "belong together: give both, or none"),
        (edit, {"control_scale": 0.5}, r"control_scale 0\.5 does nothing by itself"),
        (edit, {"control_scale": 3}, "control_scale 3 is out of range"),
        (steered["adapter"], {"control_image": picture.resize((300, 300))}, "control image is 300 x 300 but the photo"),
        (steered["adapter"], {"control_image": picture, "mask_from_difference": True}, "exclude each other"),
    ):
        with pytest.raises(UserError, match=words):
            who(**example, **SHORT, steps=1, **how)
    with pytest.raises(UserError, match="--control and --compile exclude each other"):
        Loading(control="folder", compiled=True)

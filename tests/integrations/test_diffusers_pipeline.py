"""The pipeline that a converted folder brings along, run by diffusers, against our own edits of the whole photo.

The toy model of configs/tiny.yaml goes through the real converter; pictures are equal to 1 grey level of 255."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ldm.cli.convert import main as convert
from tests.conftest import ROOT
from tests.documents import snippet

pytestmark = pytest.mark.integration
CODE = ROOT / "integrations/diffusers"
PHOTO = Image.new("RGB", (280, 200))
WHOLE = {"steps": 20, "context": "photo", "background": "none", "progress": False}
SPACED = {"timestep_spacing": "trailing", "use_karras_sigmas": True}  # as our DPM-Solver++ and UniPC
SCHEDULERS = {
    "plms": (diffusers.PNDMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, SPACED),
    "unipc": (diffusers.UniPCMultistepScheduler, SPACED),
}


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """diffusers copies a folder's code to a cache, from which it runs it: here to a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("diffusers") / "toy.v1"
    convert([str(tiny), str(path), "--config", str(ROOT / "configs/tiny.yaml"), "--to", "diffusers"])
    return str(path)


@pytest.fixture(scope="module")
def loaded(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded):
    """The loaded pipeline, whose scheduler is put back after the test."""
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


@pytest.fixture(scope="module")
def pictures():
    """photo (280 x 200), mask, and two references, as opened."""
    photo = Image.open(ROOT / "examples/image/example_1.jpg").crop((100, 100, 380, 300))
    mask = Image.new("L", photo.size)
    mask.paste(255, (60, 30, 200, 160))
    return photo, mask, *(Image.open(ROOT / f"examples/reference/example_{i}.jpg") for i in (1, 2))


@pytest.fixture
def call(pictures):
    """The arguments of an edit, in diffusers' names."""
    photo, mask, reference, _ = pictures
    return {"image": photo, "mask_image": mask, "example_image": reference, "num_inference_steps": 20}


def seeded(seed: int = 321) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest, in grey levels of 255."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


# ------------------------------------------------------------------------------------------------ equal to our edits


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_equal_to_our_edit_of_the_whole_photo(pipe, edit, pictures, call, sampler):
    kind, options = SCHEDULERS[sampler]
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    (theirs,) = pipe(**call, generator=seeded()).images
    ours = edit(*pictures[:3], seed=321, sampler=sampler, **WHOLE)
    assert theirs.size == pictures[0].size and difference(theirs, ours) <= 1


def test_each_row_of_a_batch_has_its_reference_and_each_result_its_generator(pipe, edit, pictures, call):
    photo, mask, *references = pictures
    seeds = (321, 322, 400, 401)
    call["example_image"] = references
    results = pipe(**call, num_images_per_prompt=2, generator=[seeded(seed) for seed in seeds]).images
    for result, reference, seed in zip(results, np.repeat([0, 1], 2), seeds, strict=True):
        assert difference(result, edit(photo, mask, references[reference], seed=seed, **WHOLE)) <= 1
    swapped = pipe(**{**call, "example_image": references[::-1]}, generator=[seeded(321), seeded(400)]).images
    assert min(difference(swapped[0], results[0]), difference(swapped[1], results[2])) > 1


def test_photos_masks_and_references_in_batches(pipe, pictures, call):
    photo, mask, *references = pictures
    photos, masks = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], [mask, mask.rotate(180)]
    rows = {"image": photos, "mask_image": masks, "example_image": references}
    both = pipe(**{**call, **rows}, generator=[seeded(1), seeded(2)]).images
    for i in range(2):
        alone = pipe(**{**call, **{name: each[i] for name, each in rows.items()}}, generator=seeded(1 + i)).images
        assert difference(both[i], alone[0]) <= 1
    shared = pipe(**{**call, "image": photos, "mask_image": mask}, generator=[seeded(1), seeded(2)]).images
    assert len(shared) == 2 and difference(*shared) > 1


def test_several_pictures_of_one_object(pipe, edit, pictures, call):
    photo, mask, *references = pictures
    (theirs,) = pipe(**{**call, "example_image": [references]}, generator=seeded()).images
    assert difference(theirs, edit(photo, mask, tuple(references), seed=321, **WHOLE)) <= 1


def test_inputs_are_read_as_ours_are(pipe, edit, pictures, call):
    """A cut-out reference, a soft mask of another size, a photo with transparency, a height and width."""
    photo, mask, reference, _ = pictures
    alpha = Image.new("L", reference.size)
    alpha.paste(255, (40, 20, 150, 120))
    cut_out = reference.convert("RGBA")
    cut_out.putalpha(alpha)
    photo, soft = photo.convert("RGBA"), mask.resize((333, 238), Image.Resampling.BICUBIC)
    photo.putpixel((0, 0), (0, 0, 0, 0))
    size = {"height": 96, "width": 160}
    inputs = {"image": photo, "mask_image": soft, "example_image": cut_out}
    (theirs,) = pipe(**{**call, **inputs}, **size, generator=seeded()).images
    ours = edit(photo, soft, cut_out, seed=321, **size, **WHOLE)
    assert theirs.size == (160, 96)
    assert difference(theirs.resize(photo.size, Image.Resampling.LANCZOS), ours) <= 1


def test_noise_of_ddim_and_an_edit_without_guidance(pipe, edit, pictures, call):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    noisy = pipe(**call, eta=0.7, generator=[seeded()]).images[0]
    assert difference(noisy, edit(*pictures[:3], seed=321, sampler="ddim", eta=0.7, **WHOLE)) <= 1
    plain = pipe(**call, guidance_scale=1, generator=seeded()).images[0]
    assert difference(plain, edit(*pictures[:3], seed=321, sampler="ddim", scale=1, **WHOLE)) <= 1


# ------------------------------------------------------------------------------------------------ schedulers


def test_every_scheduler_that_predicts_epsilon(pipe, call):
    config, tried = pipe.scheduler.config, set()
    call["num_inference_steps"] = 4
    for kind in pipe.scheduler.compatibles:
        if kind is diffusers.EDMEulerScheduler:  # for models of another kind
            continue
        try:
            pipe.scheduler = kind.from_config(config)
        except (ImportError, ValueError):  # needs a library that is not installed
            continue
        image = pipe(**call, output_type="pt", generator=seeded()).images
        assert image.isfinite().all() and image.std() > 0.01, kind.__name__
        tried.add(kind.__name__)
    assert {f"{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "DEISMultistep", "DDPM")} <= tried


def test_euler_takes_ddims_steps(pipe, call):
    """Without noise both are Euler's method for one equation (Song et al. 2021, equation 14)."""
    config, latents = pipe.scheduler.config, []
    for kind, options in (
        (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
        (diffusers.DDIMScheduler, {"set_alpha_to_one": True}),
    ):
        pipe.scheduler = kind.from_config(config, **options)
        latents.append(pipe(**call, output_type="latent", generator=seeded()).images)
    assert (latents[0] - latents[1]).abs().max() < 1e-4 * latents[1].abs().max()


def test_other_schedulers_are_refused(pipe, call):
    config = pipe.scheduler.config
    for scheduler in (
        diffusers.DDIMScheduler.from_config(config, prediction_type="v_prediction"),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.EDMEulerScheduler(),
    ):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__} does not predict epsilon"):
            pipe(**call)


# ------------------------------------------------------------------------------------------------ the call


def test_output_types(pipe, pictures, call):
    native = {**call, "num_inference_steps": 2, "height": 96, "width": 128}
    pil, arrays, tensor, latents = (
        pipe(**native, generator=seeded(), output_type=kind).images for kind in ("pil", "np", "pt", "latent")
    )
    assert pil[0].size == (128, 96) and arrays.shape == (1, 96, 128, 3)
    assert tensor.shape == (1, 3, 96, 128) and latents.shape == (1, 4, 12, 16)
    assert np.array_equal(np.asarray(pil[0]), (arrays[0] * 255).round().astype(np.uint8))
    assert np.array_equal(arrays, tensor.permute(0, 2, 3, 1).numpy())
    (as_tuple,) = pipe(**native, generator=seeded(), return_dict=False)
    assert np.array_equal(np.asarray(as_tuple[0]), np.asarray(pil[0]))
    own = pipe(**{**call, "num_inference_steps": 2}, output_type="np", generator=seeded()).images
    assert own.shape == (1, 200, 280, 3)  # the photo's own size


def test_tensors_are_taken_as_diffusers_takes_them(pipe, pictures, call):
    photo, mask = (picture.convert("RGB").resize((128, 96)) for picture in pictures[:2])
    call |= {"image": photo, "mask_image": mask, "num_inference_steps": 2}
    expected = pipe(**call, height=96, width=128, generator=seeded()).images[0]
    call["image"] = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 127.5 - 1
    call["mask_image"] = torch.from_numpy(np.array(mask.convert("L"))) / 255
    extractor = pipe.feature_extractor  # squashes the reference, as its configuration says
    call["example_image"] = extractor(pictures[2].convert("RGB"), return_tensors="pt").pixel_values
    result = pipe(**call, generator=seeded()).images[0]
    assert difference(result, expected) <= 2


def test_callbacks_see_and_replace_the_latents_and_end_the_sampling(pipe, call):
    call |= {"num_inference_steps": 4, "output_type": "latent"}
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors), tuple(tensors["latents"].shape)))
        return {}

    latents = pipe(**call, generator=seeded(), callback_on_step_end=watch).images
    assert [step for step, *_ in seen] == list(range(len(pipe.scheduler.timesteps)))
    assert {each[2:] for each in seen} == {(("latents",), tuple(latents.shape))}

    def zero(pipeline, step, timestep, tensors):
        assert tensors["image_embeddings"].shape[:2] == (2, 1)  # v and c
        pipeline._interrupt = step == 1
        return {"latents": tensors["latents"] * 0}

    both = ["latents", "image_embeddings"]
    result = pipe(**call, generator=seeded(), callback_on_step_end=zero, callback_on_step_end_tensor_inputs=both).images
    assert result.abs().max() == 0
    again = pipe(**call, generator=seeded()).images  # a later call is not ended
    assert torch.equal(again, latents)


def test_latents_replace_the_noise(pipe, call):
    call |= {"num_inference_steps": 2, "output_type": "latent", "generator": None}
    generator = seeded()
    noise, x = (torch.randn(1, 4, 12, 16, generator=generator) for _ in range(2))
    call |= {"height": 96, "width": 128}
    drawn = pipe(**{**call, "generator": seeded()}).images
    assert torch.equal(pipe(**{**call, "generator": seeded()}, latents=x).images, drawn)
    assert not torch.equal(pipe(**{**call, "generator": seeded()}, latents=noise).images, drawn)


def test_a_safety_checker_takes_part(pipe, call):
    def checker(images, clip_input):
        assert clip_input.shape == (1, 3, 224, 224)
        return images * 0, [True]

    checker = type("Checker", (), {"__call__": staticmethod(checker), "dtype": torch.float32})()
    parts = {name: getattr(pipe, name) for name in ("vae", "image_encoder", "unet", "scheduler")}
    checked = type(pipe)(**parts, safety_checker=None, feature_extractor=pipe.feature_extractor)
    object.__setattr__(checked, "safety_checker", checker)
    checked.set_progress_bar_config(disable=True)
    assert checked(**{**call, "num_inference_steps": 1}, output_type="pt").images.max() == 0
    with pytest.raises(ValueError, match="needs a feature_extractor"):
        type(pipe)(**parts, safety_checker=checker)


def test_half_precision(pipe, pictures, call, folder):
    half = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16
    )
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == half.image_encoder.dtype == torch.bfloat16
    (a,), (b,) = (each(**call, generator=seeded()).images for each in (pipe, half))
    assert np.abs(np.asarray(a, dtype=float) - np.asarray(b)).mean() < 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_image": Image.new("L", (280, 200))}, "nothing to paint"),
        ({"mask_image": Image.new("L", (200, 200), 255)}, "use a mask of its proportions"),
        ({"example_image": Image.new("RGBA", (9, 9))}, "fully transparent"),
        ({"example_image": []}, "do not go together"),
        ({"image": [PHOTO] * 2, "example_image": [PHOTO] * 3}, r"lists of \[1, 2, 3\] pictures"),
        ({"image": [PHOTO, PHOTO.rotate(90, expand=True)]}, "several proportions"),
        ({"height": 100}, "use multiples of 32"),
        ({"generator": [None, None]}, "2 generators for 1 results"),
        ({"output_type": "jpeg"}, "use pil, np, pt or latent"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "callbacks get"),
    ],
)
def test_what_does_not_go_together(pipe, call, change, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{**call, **change})


def test_paths_are_no_pictures(pipe, call):
    with pytest.raises(TypeError, match="str is not a picture"):
        pipe(**{**call, "image": "photo.png"})


# ------------------------------------------------------------------------------------------------ the folder


def test_the_snippet_of_the_docs(folder, pictures, call, monkeypatch, tmp_path):
    code = snippet("from diffusers import DiffusionPipeline")
    name = '"checkpoints/paint-by-example-diffusers"'
    assert name in code
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(name, repr(folder)), "integrations.md", "exec"), {})
    assert Image.open("result.png").size == Image.open(ROOT / "examples/image/example_1.jpg").size


def test_the_model_card(folder, pictures, monkeypatch, tmp_path):
    import yaml

    text = Path(folder, "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "diffusers" and header["license"] == "creativeml-openrail-m"
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    for name, picture in zip(("photo", "mask", "reference"), pictures, strict=False):
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    code = code.replace('"."', repr(folder)).replace("mask_image=", "num_inference_steps=2, mask_image=")
    exec(compile(code, "README.md", "exec"), {})
    assert Image.open("result.png").size == pictures[0].size


def test_the_folder_needs_no_custom_pipeline_and_diffusers_own_class_gives_way_to_it(folder):
    for start in (DiffusionPipeline, diffusers.PaintByExamplePipeline):
        pipe = start.from_pretrained(folder, trust_remote_code=True)
        assert type(pipe).__module__ == "diffusers_modules.local.pipeline"


def test_a_saved_pipeline_is_complete(pipe, call, tmp_path):
    """Loaded in a process of its own, which has not seen the code before; ours reads it as well."""
    from ldm.checkpoint import read_checkpoint

    call["num_inference_steps"] = 2
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    expected = pipe(**call, generator=seeded()).images[0]
    saved, names = tmp_path / "saved", {"image": "image", "mask_image": "mask", "example_image": "reference"}
    pipe.save_pretrained(saved)
    for argument, name in names.items():
        call[argument].save(tmp_path / f"{name}.png")
    code = f"""
import torch
from diffusers import DiffusionPipeline
from PIL import Image
pipe = DiffusionPipeline.from_pretrained("saved", custom_pipeline="saved", trust_remote_code=True)
pictures = {{argument: Image.open(name + ".png") for argument, name in {names}.items()}}
generator = torch.Generator().manual_seed(321)
pipe(**pictures, num_inference_steps=2, generator=generator).images[0].save("result.png")
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert difference(Image.open(tmp_path / "result.png"), expected) <= 1
    assert len(read_checkpoint(saved)) > 900


def test_the_code_stands_alone_and_is_short():
    for file in CODE.glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        modules = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
        modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        packages = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
        assert packages <= {"diffusers", "torch", "transformers", "numpy", "PIL"}
        assert len(file.read_text().splitlines()) <= 300

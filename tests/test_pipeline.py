"""The Python call: pictures in, pictures out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.conventions import resize_tensor, tensor_to_image
from ldm.editing.checks import pick_device
from ldm.editing.metadata import read_settings, save_with_settings
from ldm.editing.options import Sampling
from ldm.editing.regions import Region, box_mask, grow, polygon_mask
from ldm.images import ORIENTATION
from ldm.pipeline import PaintByExample
from ldm.util import UserError
from tests.conftest import ROOT

FAST = {"steps": 3, "progress": False, "height": 64, "width": 96}


def levels(a, b):
    """Largest difference of two pictures, grey levels."""
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()


def test_one_edit(edit, example):
    steps = []
    out = edit(**example, **FAST, callback=steps.append)
    assert out.size == (600, 400) and out.mode == "RGB"
    assert len(steps) == 3
    inside = np.asarray(example["mask"]) > 127  # painted there, and nowhere else
    changed = np.abs(np.asarray(out).astype(int) - np.asarray(example["image"]).astype(int)).max(axis=2)
    assert (changed[inside] > 8).mean() > 0.5 and changed[~inside].max() == 0
    assert levels(out, edit(**example, **FAST)) == 0
    assert levels(out, edit(**example, **FAST, seed=322)) > 8
    assert levels(out, edit(**example, **FAST, scale=1.0)) > 0


def test_a_later_region_that_cannot_be_painted_is_told_before_sampling(edit, example):
    steps, regions = [], [Region(box=(10, 10, 200, 200)), Region(box=(300, 300, 301, 301))]
    with pytest.raises(UserError, match="too small for the model to see"):
        edit(
            example["image"],
            regions=regions,
            references=[example["reference"]],
            context="photo",
            callback=steps.append,
            **FAST,
        )
    assert not steps


def test_several_samples_differ_and_each_depends_on_its_seed_alone(edit, example):
    four = edit(**example, **FAST, seed=10, n_samples=4)
    assert len(four) == 4
    for i in range(4):
        assert levels(four[i], edit(**example, **FAST, seed=10 + i)) <= 1  # to rounding
        for j in range(i):
            assert levels(four[i], four[j]) > 8


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm++", "unipc"])
def test_samplers(edit, example, sampler):
    eta = 1.0 if sampler == "ddim" else 0.0
    two = edit(**example, **FAST, sampler=sampler, eta=eta, n_samples=2)
    assert levels(two[1], edit(**example, **FAST, sampler=sampler, eta=eta, seed=322)) <= 1


def test_lists_pair_masks_and_references_with_their_images(edit, example):
    other = {
        "image": Image.open(ROOT / "examples/image/example_1.jpg"),
        "mask": Image.open(ROOT / "examples/mask/example_1.png"),
        "reference": Image.open(ROOT / "examples/reference/example_1.jpg"),
    }
    options = {"steps": 3, "progress": False, "height": 64, "width": 64}
    single = [edit(**example, **options), edit(**other, **options)]
    lists = {name: [example[name], other[name]] for name in example}
    together = edit(**lists, **options)
    assert [levels(a, b) <= 1 for a, b in zip(single, together, strict=True)] == [True, True]
    assert [picture.size for picture in single] == [(600, 400), (512, 512)]
    # a single picture goes with every entry; several samples of each
    rows = edit(example["image"], example["mask"], lists["reference"], n_samples=2, **options)
    assert [len(row) for row in rows] == [2, 2]
    assert levels(rows[0][0], single[0]) <= 1
    with pytest.raises(UserError, match="do not go together"):
        edit([example["image"]] * 3, example["mask"], [example["reference"]] * 2)


def test_lists_of_different_shapes_come_back_in_order(edit, example):
    square = example["image"].crop((0, 0, 400, 400)), example["mask"].crop((0, 0, 400, 400))
    images = [example["image"], square[0], example["image"]]
    masks = [example["mask"], square[1], example["mask"]]
    out = edit(images, masks, example["reference"], steps=2, progress=False)
    assert [picture.size for picture in out] == [(600, 400), (400, 400), (600, 400)]
    assert levels(out[0], out[2]) <= 1


def test_sizes(edit):
    photo = Image.new("RGB", (600, 400))
    assert edit.native_size == 128 and edit.model.size_multiple == 32
    assert edit.size_for(Image.new("RGB", (77, 77))) == (128, 128)
    assert edit.size_for(photo) == (128, 192)
    assert edit.size_for(Image.new("RGB", (3000, 4000))) == (128, 96)
    assert edit.size_for(photo, 64) == (64, 96)
    assert edit.size_for(photo, None, 192) == (128, 192)
    assert edit.size_for(photo, 64, 64) == (64, 64)
    assert edit.size_for(Image.new("RGB", (10000, 10))) == (32, 992)
    for height, cure in ((100, "use 96"), (1, "use 32"), (-64, "use 32")):
        with pytest.raises(UserError, match=cure):
            edit.size_for(photo, height)


def test_the_mask_follows_the_image(edit, example):
    inputs = edit.prepare(**example)
    assert inputs.image.shape == (1, 3, 128, 192) and inputs.mask.shape == (1, 1, 128, 192)
    assert set(inputs.mask.unique().tolist()) == {0.0, 1.0}
    share = 1 - inputs.mask.mean().item()
    assert share == pytest.approx(np.asarray(example["mask"]).mean() / 255, abs=0.01)
    assert (inputs.inpaint_image[inputs.mask.expand_as(inputs.image) == 0] == 0).all()
    assert inputs.reference.shape == (1, 3, 224, 224)


@pytest.mark.integration
def test_a_small_region_of_a_large_photo():
    """12 megapixels, of which the mask is 1%: all else is the photo's own, byte for byte."""
    from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG

    mini = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu")
    photo = Image.open(ROOT / "examples/image/example_1.jpg").resize((4000, 3000))
    mask = Image.new("L", photo.size)
    mask.paste(255, (3000, 2000, 3346, 2346))
    out = mini(photo, mask, Image.open(ROOT / "examples/reference/example_1.jpg"), steps=5, progress=False)
    before, after, outside = np.asarray(photo), np.asarray(out), np.asarray(mask) == 0
    assert out.size == photo.size
    assert np.array_equal(after[outside], before[outside])
    assert (after[~outside] != before[~outside]).any(axis=-1).mean() > 0.95


def test_as_published_with_the_whole_photo_and_no_background(edit, example):
    """What sample() makes of prepare()'s whole photo, resized to the photo's size."""
    out = edit(**example, **FAST, context="photo", background="none")
    tensor = edit.sample(edit.prepare(**example, height=64, width=96), [321], Sampling(steps=3), progress=False)[0]
    assert levels(out, tensor_to_image(tensor).resize((600, 400), Image.Resampling.LANCZOS)) == 0


def test_strength(edit, example):
    """0 is what the autoencoder makes of the photo; from there on it moves away."""
    whole = {**example, **FAST, "context": "photo", "background": "none"}
    inputs = edit.prepare(**example, height=64, width=96)
    through = tensor_to_image(edit.model.first_stage_model.reconstruct(inputs.image)[0].detach())
    assert levels(edit(**whole, strength=0), through.resize((600, 400), Image.Resampling.LANCZOS)) <= 1
    photo, *pictures = (np.asarray(edit(**whole, strength=s)).astype(int) for s in (0, 0.34, 0.67, 1))
    distances = [np.abs(picture - photo).mean() for picture in pictures]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_blended_latents_keep_the_photos(edit, example):
    """Where all of a latent's mask is to be kept; dpm++ ends without noise."""
    inputs = edit.prepare(**example, height=64, width=96)
    with torch.no_grad():
        wanted = edit.model.scale_factor * edit.model.encode_first_stage(inputs.image).mode()
    kept = (resize_tensor(inputs.mask, wanted.shape[-2:]) == 1).expand_as(wanted)
    for blend in (False, True):
        steps = []
        edit(**example, **FAST, context="photo", sampler="dpm++", blend_latents=blend, callback=steps.append)
        close = torch.isclose(steps[-1].x, wanted, atol=1e-3)
        assert close[kept].all() == blend
        assert not close[~kept].all()


def test_several_references_of_one_object(edit, example):
    other = Image.open(ROOT / "examples/reference/example_1.jpg")
    one, two = example["reference"], {**example, "reference": (example["reference"], other)}
    alone = edit(**example, **FAST)
    assert levels(alone, edit(**{**example, "reference": (one, one)}, **FAST)) <= 1
    both = edit(**two, **FAST)
    assert levels(both, alone) > 0
    # each edit of a batch has its own
    rows = edit(**{**example, "reference": [one, (one, other), other]}, **FAST)
    for row, reference in zip(rows, (one, (one, other), other), strict=True):
        assert levels(row, edit(**{**example, "reference": reference}, **FAST)) <= 1


def test_several_regions_are_painted_one_after_the_other(edit, example):
    """Each is what an edit of the picture so far gives, with the region's own reference."""
    photo, one = example["image"], example["reference"]
    other = Image.open(ROOT / "examples/reference/example_1.jpg")
    boxes = [(60, 60, 160, 160), (420, 220, 520, 320)]
    masks = [box_mask(photo.size, box) for box in boxes]
    step_by_step = edit(edit(photo, masks[0], one, **FAST), masks[1], (other, one), **FAST)
    regions = [Region(box=boxes[0]), Region(mask=masks[1])]
    assert edit(photo, regions=regions, references=[one, (other, one)], **FAST).tobytes() == step_by_step.tobytes()
    # one reference for all, and two samples of each of two photos
    rows = edit([photo, photo], regions=regions, references=[one], seed=[7, 321], n_samples=2, **FAST)
    assert [len(row) for row in rows] == [2, 2]
    twice = edit(edit(photo, masks[0], one, **FAST), masks[1], one, **FAST)
    assert levels(rows[1][0], twice) <= 1
    for wrong, kind, words in (
        ({"regions": regions}, UserError, "regions or references are missing"),
        ({"regions": [], "references": [one]}, UserError, "regions or references are missing"),
        ({"regions": regions, "references": [one], "mask": masks[0]}, UserError, "mask and reference exclude regions"),
        ({"mask": masks[0]}, UserError, "no reference is given"),
        ({"reference": one}, UserError, "no region is marked: give mask, box, polygon, alpha or regions"),
        (
            {"mask": masks[0], "box": boxes[0], "reference": one},
            UserError,
            "mask, box, polygon, alpha and click or snap excl",
        ),
    ):
        with pytest.raises(kind, match=words):
            edit(photo, **wrong, **FAST)


def test_regions_grow_and_are_inverted(edit, example):
    photo, box = example["image"], (200, 100, 300, 200)
    grown = edit(photo, box_mask(photo.size, box), example["reference"], grow=9, background="none", **FAST)
    asked = grow(box_mask(photo.size, box), 9)
    assert levels(grown, edit(photo, asked, example["reference"], background="none", **FAST)) == 0
    inverted = edit(photo, box_mask(photo.size, box), example["reference"], invert=True, context="photo", **FAST)
    assert levels(inverted.crop(box), photo.crop(box)) == 0 and levels(inverted, photo) > 8


def test_a_seed_for_each_edit(edit, example):
    rows = edit(**example, **FAST, seed=[5, 9])
    for row, seed in zip(rows, (5, 9), strict=True):
        assert levels(row, edit(**example, **FAST, seed=seed)) <= 1


def test_half_precision_is_near_full_precision(tiny, edit, example):
    half = PaintByExample.load(ROOT / "configs/tiny.yaml", tiny, "cpu", "bf16")
    difference = levels(half(**example, **FAST), edit(**example, **FAST))
    assert 0 < difference < 16


def test_sizes_are_checked_before_a_window_takes_their_shape(edit, example):
    for height, width in ((-64, 64), (64, -64), (100, 64)):
        with pytest.raises(UserError, match="which takes multiples of 32"):
            edit(**example, steps=2, height=height, width=width)


def test_full_memory_is_one_sentence(edit, example, monkeypatch):
    words = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"

    def full(z):
        raise RuntimeError(words)

    monkeypatch.setattr(edit.networks, "decode_first_stage", full)
    with pytest.raises(UserError, match="the memory is full"):
        edit(**example, **FAST)
    words = "sizes do not match"
    with pytest.raises(RuntimeError, match="sizes do not match"):
        edit(**example, **FAST)


def test_a_result_that_is_not_finite_is_an_error(edit, example, monkeypatch):
    for precision, cure in (("full", "may be damaged"), ("bf16", "use --precision full")):
        broken = PaintByExample(edit.model, precision)
        monkeypatch.setattr(broken.networks, "decode_first_stage", lambda z: torch.full((1, 3, 64, 96), torch.nan))
        with pytest.raises(UserError, match=f"in {precision} precision: .*{cure}"):
            broken(**example, **FAST)


def test_in_half_precision_too_a_picture_depends_on_its_seed_alone(edit, example):
    half = PaintByExample(edit.model, "bf16")
    two = half(**example, **FAST, n_samples=2)
    assert levels(two[1], half(**example, **FAST, seed=322)) <= 8  # to bfloat16's rounding, in all networks


def test_batches_of_any_size_give_the_same_pictures(edit, example):
    together = edit(**example, **FAST, n_samples=3, batch_size=3)
    one_by_one = edit(**example, **FAST, n_samples=3, batch_size=1)
    assert all(levels(a, b) <= 1 for a, b in zip(together, one_by_one, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": -1}, "scale -1"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": 101}, "scale 101"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": 1000}, "1000 sampling steps"),
        ({"n_samples": 0}, "n_samples 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": 2**63 - 1, "n_samples": 2}, "seed 9223372036854775808"),
        ({"sampler": "dpm++", "steps": 501}, "too many for dpm"),
        ({"seed": -1}, "seed -1"),
        ({"sampler": "heun"}, "sampler 'heun'"),
        ({"eta": 0.5}, "eta 0.5"),
        ({"width": 65}, "use 64"),
        ({"strength": -0.1}, "strength -0.1"),
        ({"background": "grey"}, "background 'grey'"),
        ({"context": 0}, "context 0"),
        ({"reference_fit": "fill"}, "reference_fit 'fill'"),
        ({"mask": Image.new("L", (600, 400))}, "nothing to paint"),
        ({"mask": Image.new("L", (600, 400), 1)}, "nothing to paint"),
        ({"mask": Image.new("L", (100, 400), 255)}, "use a mask with the image's proportions"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_values_that_cannot_be_used_are_errors(edit, example, change, words):
    with pytest.raises(UserError, match=words):
        edit(**{**example, **FAST, **change})


def test_a_region_too_small_for_the_model_is_an_error(edit, example):
    mask = Image.new("L", (600, 400))
    mask.paste(255, (300, 200, 303, 203))
    with pytest.raises(UserError, match="too small for the model to see"):
        edit(example["image"], mask, example["reference"], **FAST, context="photo")
    # whole at the edit's size, but between the points at which the latent's mask is sampled
    mask = Image.new("L", (96, 64))
    mask.paste(255, (5, 5, 11, 11))
    with pytest.raises(UserError, match="too small for the model to see"):
        edit(example["image"], mask, example["reference"], **FAST, context="photo")


def test_anything_else_than_pictures_is_told_by_its_type(edit, example):
    for name in ("image", "mask", "reference"):
        for wrong, words in (
            (5, f"{name} is of the type int: give a path"),
            ({"a": 1}, f"{name} is of the type dict: give a path"),
            (np.zeros((64, 96, 3)), rf"{name} is an array of float64 and shape \(64, 96, 3\): give a path"),
            (np.zeros((64, 96, 2), np.uint8), rf"{name} is an array of uint8 and shape \(64, 96, 2\)"),
            (torch.zeros(64, 96, 3), rf"{name} is a tensor of torch.float32 and shape \(64, 96, 3\)"),
            (torch.full((3, 64, 96), -1.0), rf"{name} is a tensor of values from -1 to -1: give floats from 0 to 1"),
            ([], f"{name} is an empty list"),
        ):
            with pytest.raises((TypeError, UserError), match=words):
                edit(**{**example, name: wrong}, **FAST)
        with pytest.raises(UserError, match=r"nowhere\.jpg does not exist"):
            edit(**{**example, name: "nowhere.jpg"}, **FAST)


def test_paths_arrays_and_tensors_are_pictures(edit, example):
    """Each gives the picture that PIL's pictures give; batches of them are lists."""
    wanted = edit(**example, **FAST)
    mask = np.asarray(example["mask"].convert("L"))
    arrays = {name: np.asarray(picture.convert("RGB")) for name, picture in example.items()}
    tensors = {name: torch.from_numpy(array.copy()).movedim(2, 0) for name, array in arrays.items()}
    paths = {name: picture.filename for name, picture in example.items()}
    for given in (
        paths,
        {name: Path(path) for name, path in paths.items()},
        arrays,
        arrays | {"mask": mask},
        arrays | {"mask": mask > 127},
        tensors,
        {name: tensor / 255 for name, tensor in tensors.items()},
        tensors | {"mask": torch.from_numpy(mask > 127)[None]},
    ):
        assert levels(edit(**given, **FAST), wanted) == 0
    for given in (
        arrays | {"image": np.stack([arrays["image"]] * 2)},
        tensors | {"reference": torch.stack([tensors["reference"]] * 2)},
        paths | {"image": [paths["image"]] * 2},
    ):
        rows = edit(**given, **FAST)
        assert len(rows) == 2 and all(levels(row, wanted) <= 1 for row in rows)


def test_a_region_as_box_polygon_or_alpha(edit, example):
    photo, reference = example["image"], example["reference"]
    box, corners = (150, 20, 400, 300), [(450, 250), (590, 260), (560, 390)]
    erased = photo.convert("RGBA")
    erased.putalpha(Image.eval(box_mask(photo.size, box), lambda level: 255 - level))
    for given, region in (({"box": box}, Region(box=box)), ({"polygon": corners}, Region(polygon=tuple(corners)))):
        wanted = edit(photo, regions=[region], references=[reference], **FAST)
        assert levels(edit(photo, reference=reference, **given, **FAST), wanted) == 0
    wanted = edit(erased, regions=[Region(alpha=True)], references=[reference], **FAST)
    assert levels(edit(erased, reference=reference, alpha=True, **FAST), wanted) == 0


def test_a_list_of_boxes_or_polygons_has_one_for_each_edit(edit, example):
    photo, reference = example["image"], example["reference"]
    boxes = [(150, 20, 400, 300), (420, 220, 520, 320)]
    polygons = [[(450, 250), (590, 260), (560, 390)], [(10, 10), (200, 20), (150, 150), (20, 120)]]
    for given, masks in (
        ({"box": boxes}, [box_mask(photo.size, box) for box in boxes]),
        ({"box": np.array(boxes)}, [box_mask(photo.size, box) for box in boxes]),
        ({"polygon": polygons}, [polygon_mask(photo.size, corners) for corners in polygons]),
    ):
        pictures = edit([photo, photo], reference=reference, **given, **FAST)
        wanted = edit([photo, photo], masks, reference, **FAST)
        assert [levels(one, other) for one, other in zip(pictures, wanted, strict=True)] == [0, 0]
    assert len(edit(photo, box=boxes, reference=reference, **FAST)) == 2
    with pytest.raises(UserError, match="lists of 1 and 2 entries do not go together"):
        edit([photo], box=boxes, reference=reference, **FAST)


def test_the_flags_names_are_arguments_too(edit, example):
    wanted = edit(**example, **FAST)
    named = {"image_path": "image", "mask_path": "mask", "reference_path": "reference"}
    given = {flag: example[name] for flag, name in named.items()}
    assert levels(edit(**given, ddim_steps=3, H=64, W=96, ddim_eta=0.0, progress=False), wanted) == 0
    for wrong, words in (
        ({"stpes": 3}, "'stpes' is not an argument of an edit: did you mean steps"),
        ({"backround": "none"}, "did you mean background"),
        ({"xyzzy": 1}, "use alpha, background, batch_size"),
        ({"steps": 3, "ddim_steps": 3}, "ddim_steps and steps are the same argument"),
    ):
        with pytest.raises(TypeError, match=words):
            edit(**example, **wrong)


def test_the_settings_of_a_result_are_in_it_and_in_its_file(edit, example, script, tmp_path, tiny):
    """--from makes the picture again from the file, also in another folder; pictures in memory have no names."""
    result = edit(**example, **FAST, seed=7, grow=3)
    settings = read_settings(result)
    wanted = {"seed": 7, "steps": 3, "height": 64, "width": 96, "grow": 3, "checkpoint": "tiny.safetensors"}
    assert wanted.items() <= settings.items() and "/" not in result.info["paint-by-example"]
    save_with_settings(result, tmp_path / "result.png")
    assert read_settings(tmp_path / "result.png") == settings
    code, _, err = script(
        "inference", "--from", tmp_path / "result.png", "--outdir", tmp_path / "out", "--device", "cpu"
    )
    assert code == 0, err
    assert levels(Image.open(tmp_path / "out/results/example_2_7.png"), result) == 0
    two = edit(np.asarray(example["image"]), example["mask"], example["reference"], n_samples=2, **FAST)
    assert [read_settings(each)["seed"] for each in two] == [321, 322] and "image" not in read_settings(two[0])
    save_with_settings(result, tmp_path / "none.png", {})
    assert "paint-by-example" not in Image.open(tmp_path / "none.png").info


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device().type in ("cuda", "mps", "cpu")
    with pytest.raises(UserError, match="cannot be used here"):
        pick_device("cuda:77")
    with pytest.raises(UserError, match="cannot be used here"):
        pick_device("toaster")


def test_seeds_may_be_numpys(edit, example):
    (row,) = edit(**example, **FAST, seed=np.array([7]))
    assert levels(row, edit(**example, **FAST, seed=np.int64(7))) == 0


def test_empty_lists_and_lists_of_several_lengths_are_refused(edit, example):
    with pytest.raises(TypeError, match="image is an empty list"):
        edit([], [], [], **FAST)
    with pytest.raises(UserError, match="lists of 2 and 3 entries do not go together: give image, mask, reference"):
        edit(**example | {"image": [example["image"]] * 2}, **FAST, seed=[1, 2, 3])


def test_a_photo_whose_file_says_last_how_it_is_turned(edit, example, tmp_path):
    """A PNG with its EXIF after its pixels, opened and not loaded, as in a call from Python."""
    path = tmp_path / "late.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = example["image"].transpose(Image.Transpose.ROTATE_90)
    stored.save(path, exif=exif)
    chunks, data = [], path.read_bytes()
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at:end])
        at = end
    chunks.sort(key=lambda chunk: (chunk[4:8] == b"IEND", chunk[4:8] == b"eXIf"))
    path.write_bytes(data[:8] + b"".join(chunks))
    late = edit(Image.open(path), example["mask"], example["reference"], **FAST)
    assert late.size == (600, 400) and late.tobytes() == edit(**example, **FAST).tobytes()

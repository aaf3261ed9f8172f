"""scripts/inference.py: its flags, its files, and what it says when something is wrong."""

import json
import os
import signal as signals
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ldm.editing.metadata import read_settings, save_with_settings
from ldm.models.diffusion.presets import PRESETS, Preset
from tests.conftest import GOLDEN, ROOT

EXAMPLES = ROOT / "examples"
NOTHING = dict.fromkeys(
    ["image_path", "mask_path", "reference_path", "config", "ckpt", "ddim_steps", "H", "W"]
)  # of the flags that `run` gives


@pytest.fixture
def run(script, tiny, tmp_path):
    """Edit example 2 with the tiny model -> (exit code, stdout, stderr); None leaves a flag out."""

    def call(*more, **flags):
        options = {
            "image_path": EXAMPLES / "image/example_2.jpg",
            "mask_path": EXAMPLES / "mask/example_2.png",
            "reference_path": EXAMPLES / "reference/example_2.jpg",
            "config": ROOT / "configs/tiny.yaml",
            "ckpt": tiny,
            "outdir": tmp_path / "out",
            "ddim_steps": 2,
            "H": 64,
            "W": 96,
            "device": "cpu",
        } | flags
        args = [x for name, value in options.items() if value is not None for x in (f"--{name}", value)]
        return script("inference", *args, *more)

    return call


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_it_writes_what_the_published_script_writes(run, tmp_path):
    code, out, err = run()
    assert code == 0, err
    assert out.splitlines() == [
        f"wrote {tmp_path}/out/results/example_2_321.png",
        f"wrote {tmp_path}/out/grid/grid-example_2_321.png",
    ]
    assert "600 x 400 pixels of the photo at 96 x 64" in err and "the mask covers 25% of them" in err
    assert "2 steps of" in err and "peak memory" in err
    kept = json.loads(Image.open(tmp_path / "out/results/example_2_321.png").text["paint-by-example"])
    wanted = {"seed": 321, "scale": 5.0, "sampler": "plms", "steps": 2, "eta": 0.0, "checkpoint": "tiny.safetensors"}
    assert wanted.items() <= kept.items()
    assert files(tmp_path / "out") == [
        "grid/grid-example_2_321.png",
        "results/.files/example_2_321.png.json",
        "results/example_2_321.png",
        "source/example_2_321_GT.png",
        "source/example_2_321_inpaint.png",
        "source/example_2_321_mask.png",
        "source/example_2_321_ref.png",
    ]
    result, mask, source, inpaint = (
        pixels(tmp_path / "out" / name)
        for name in (
            "results/example_2_321.png",
            "source/example_2_321_mask.png",
            "source/example_2_321_GT.png",
            "source/example_2_321_inpaint.png",
        )
    )
    photo = pixels(EXAMPLES / "image/example_2.jpg")
    outside = pixels(EXAMPLES / "mask/example_2.png") < 128
    assert np.array_equal(result[outside], photo[outside])
    assert np.abs(result[~outside] - photo[~outside]).mean() > 8
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(inpaint[mask == 0], source[mask == 0])
    assert (np.abs(inpaint[mask == 255] - 127.5) <= 1).all()
    original = Image.open(EXAMPLES / "reference/example_2.jpg")
    reference = original.resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(
        pixels(tmp_path / "out/source/example_2_321_ref.png"), np.asarray(reference)
    )  # as CLIP saw it
    grid = Image.open(tmp_path / "out/grid/grid-example_2_321.png")
    assert grid.size == (4 * 386 - 2, 256)  # of 96 x 64, enlarged
    inked = (np.asarray(grid.crop((2 * 386, 0, 2 * 386 + 384, 256))) != 255).any(axis=2)  # the reference, on white
    width, height = inked.any(axis=0).sum(), inked.any(axis=1).sum()
    assert width / height == pytest.approx(original.width / original.height, rel=0.02)


def test_four_samples_and_two_batches(run, tmp_path):
    assert run(n_samples=2, n_iter=2)[0] == 0
    results = [tmp_path / f"out/results/example_2_{seed}.png" for seed in (321, 322, 323, 324)]
    pictures = [pixels(path) for path in results]
    assert len(files(tmp_path / "out/source")) == 4  # the same for all of them
    for i in range(4):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).max() > 8
    assert Image.open(tmp_path / "out/grid/grid-example_2_321.png").size == (4 * 386 - 2, 2 * 258 - 2)
    assert run(seed=324, outdir=tmp_path / "single")[0] == 0
    assert np.abs(pixels(tmp_path / "single/results/example_2_324.png") - pictures[3]).max() <= 1


def test_fixed_code_starts_every_batch_from_the_same_noise(run, tmp_path):
    assert run("--fixed_code", n_iter=2)[0] == 0
    assert run(n_iter=2, outdir=tmp_path / "free")[0] == 0
    fixed, free = (
        [pixels(tmp_path / where / f"results/example_2_{seed}.png") for seed in (321, 322)] for where in ("out", "free")
    )
    assert np.abs(fixed[0] - free[0]).max() == 0
    # the second picture shares the start and differs by the masked image's posterior sample alone
    assert 0 < np.abs(fixed[1] - fixed[0]).mean() < np.abs(free[1] - free[0]).mean()
    # and is repeated by itself
    assert run("--fixed_code", "--skip_grid", n_samples=2, n_iter=2, outdir=tmp_path / "four")[0] == 0
    written = tmp_path / "four/results/example_2_324.png"
    kept = read_settings(written)
    assert (kept["seed"], kept["start"]) == (324, 322)
    again = {"ddim_steps": None, "seed": None, "outdir": tmp_path / "again"}
    assert run("--from", written, **again)[0] == 0
    assert np.abs(pixels(tmp_path / "again/results/example_2_324.png") - pixels(written)).max() <= 1
    assert run("--from", written, **again | {"seed": 324})[0] == 0  # a given seed is also the seed of x_T
    assert np.abs(pixels(tmp_path / "again/results/example_2_324.png") - pixels(written)).max() > 1


def test_coordinates_may_begin_below_0(run, tmp_path):
    for region in (["--box", "-10,-5,200,150"], ["--polygon", "-10,-10", "300,50", "-.5,200"]):
        code, _, err = run(*region, "--skip_grid", mask_path=None)
        assert code == 0, err
    assert read_settings(tmp_path / "out/results/example_2_321.png")["regions"][0]["polygon"][0] == [-10, -10]


def test_flags_that_choose_what_is_written(run, tmp_path):
    assert run("--skip_grid", outdir=tmp_path / "a")[0] == 0
    assert not (tmp_path / "a/grid").exists() and (tmp_path / "a/results").exists()
    assert run("--skip_save", n_rows=4, outdir=tmp_path / "b")[0] == 0
    assert files(tmp_path / "b") == ["grid/grid-example_2_321.png"]
    assert Image.open(tmp_path / "b/grid/grid-example_2_321.png").size == (384, 4 * 258 - 2)
    assert run("--skip_save", n_rows=10**9, outdir=tmp_path / "c")[0] == 0  # more rows than pictures
    assert Image.open(tmp_path / "c/grid/grid-example_2_321.png").size == (384, 4 * 258 - 2)


def test_a_second_edit_of_a_photo_keeps_the_first(run, tmp_path):
    """The new one has the plain name; the same edit again changes nothing; one folder where it is named results."""
    outdir = tmp_path / "results"
    boxes = ["20,20,200,200", "300,100,500,300", "100,100,300,300"]
    texts, pictures = [], []
    for box in boxes:
        code, out, _ = run("--box", box, mask_path=None, outdir=outdir)
        assert code == 0
        texts.append(out)
        pictures.append((outdir / "example_2_321.png").read_bytes())
    assert "kept" not in texts[0] and f"kept the earlier {outdir}/example_2_321.png as" in texts[1]
    assert (outdir / "example_2_321-1.png").read_bytes() == pictures[0]
    assert (outdir / "example_2_321-2.png").read_bytes() == pictures[1]
    assert (outdir / "grid/grid-example_2_321-2.png").exists() and (outdir / "source/example_2_321-1_mask.png").exists()
    before = files(outdir)
    assert "kept" not in run("--box", boxes[2], mask_path=None, outdir=outdir)[1]
    assert files(outdir) == before
    # what was kept can be made again
    assert run("--from", outdir / "example_2_321-1.png", **NOTHING, outdir=tmp_path / "again")[0] == 0
    assert (pixels(tmp_path / "again/results/example_2_321.png") == pixels(outdir / "example_2_321-1.png")).all()


def test_a_picture_tells_no_folders_and_is_repeated_from_anywhere(run, script, tmp_path, monkeypatch):
    """Where its files are is kept beside it; a picture that was passed on looks for them beside itself."""
    (tmp_path / "secret").mkdir()
    for name in ("image", "reference"):  # of the same name, in two folders
        (tmp_path / "secret" / name).mkdir()
        (tmp_path / "secret" / name / "a.jpg").write_bytes((EXAMPLES / name / "example_2.jpg").read_bytes())
    monkeypatch.chdir(tmp_path / "secret")
    assert run("--box", "9,9,99,99", image_path="image/a.jpg", reference_path="reference/a.jpg", mask_path=None)[0] == 0
    first = tmp_path / "out/results/a_321.png"
    assert b"secret" not in first.read_bytes() and b"reference/" not in first.read_bytes()
    assert read_settings(first)["references"] == [["a.jpg#2"]]
    monkeypatch.chdir(tmp_path)
    assert run("--from", first, **NOTHING, outdir=tmp_path / "again")[0] == 0
    assert (pixels(first) == pixels(tmp_path / "again/results/a_321.png")).all()
    # passed on with its photo: what is not there is named
    (tmp_path / "shared").mkdir()
    for path in (first, tmp_path / "secret/image/a.jpg"):
        (tmp_path / "shared" / path.name).write_bytes(path.read_bytes())
    shared = ["--from", tmp_path / "shared/a_321.png", "--config", ROOT / "configs/tiny.yaml"]
    shared += ["--ckpt", read_ckpt(first)]
    code, _, err = script("inference", *shared)
    assert code == 2 and "reference a.jpg#2 does not exist" in err
    reference = ["--reference", EXAMPLES / "reference/example_2.jpg"]
    code, _, err = script("inference", *shared, *reference, "--outdir", tmp_path / "beside", "--device", "cpu")
    assert code == 0, err
    assert (pixels(first) == pixels(tmp_path / "beside/results/a_321.png")).all()
    # and none of it with --no-settings
    assert run("--no-settings", outdir=tmp_path / "bare")[0] == 0
    assert "paint-by-example" not in Image.open(tmp_path / "bare/results/example_2_321.png").info
    assert not (tmp_path / "bare/results/.files").exists()


def read_ckpt(path):
    """Of the files that are kept beside a picture."""
    return json.loads((path.parent / f".files/{path.name}.json").read_text())[read_settings(path)["ckpt"]]


def test_a_picture_of_the_page_lacks_files_which_may_be_given(script, tmp_path):
    save_with_settings(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"seed": 5, "scale": 3.0, "checkpoint": "m.ckpt"})
    code, _, err = script("inference", "--from", tmp_path / "a.png")
    assert code == 2 and len(err.splitlines()) == 1
    assert "a.png keeps no file names for --image_path, --mask_path, --reference_path" in err
    code, _, err = script("inference", "--from", tmp_path / "a.png", "--image", "p.jpg", "--box", "1,1,9,9")
    assert code == 2 and "file names for --reference_path, as pictures made by the page" in err


def test_the_calls_names_and_hyphens_are_flags_too(run, tmp_path):
    names = {"image_path": "image", "mask_path": "mask", "reference_path": "reference"}
    assert run()[0] == 0
    given = {"ddim_steps": None, "H": None, "W": None, "steps": 2, "height": 64, "width": 96, "outdir": tmp_path / "b"}
    paths = ("image/example_2.jpg", "mask/example_2.png", "reference/example_2.jpg")
    given |= dict.fromkeys(names) | {name: EXAMPLES / path for name, path in zip(names.values(), paths, strict=True)}
    assert run(**given)[0] == 0
    assert run(**given | {"steps": None, "ddim-steps": 2, "outdir": tmp_path / "c"})[0] == 0
    first = (tmp_path / "out/results/example_2_321.png").read_bytes()
    assert all((tmp_path / name / "results/example_2_321.png").read_bytes() == first for name in "bc")


def test_a_region_beyond_the_photo_is_said_to_be_cut(run):
    code, _, err = run("--box", "500,300,900,380", "--skip_grid", mask_path=None)
    assert code == 0 and "box 500,300,900,380 is cut at the border of the photo, which is 600 x 400 pixels, and" in err
    assert "becomes 500,300,600,380" in err
    assert "the polygon is cut" in run("--polygon", "10,10", "700,50", "20,300", "--skip_grid", mask_path=None)[2]
    assert "cut" not in run("--box", "0,0,600,400", "--skip_grid", mask_path=None)[2]


@pytest.mark.parametrize(
    "flags",
    [
        {"sampler": "ddim", "ddim_eta": 1.0},
        {"sampler": "dpm++"},
        {"sampler": "unipc"},
        {"scale": 1},
        {"seed": 5},
        {"precision": "bf16"},
        {"ddim_steps": 3},
        {"strength": 0.5},
        {"context": "photo", "H": 128},
        {"background": "feather"},
        {"background": "poisson"},
        {"background": "none"},
        {"feather": 0},
        {"grow": 20},
        {"reference_fit": "crop"},
        {"reference_mask_path": EXAMPLES / "mask/example_3.png", "reference_path": EXAMPLES / "image/example_3.jpg"},
    ],
    ids=lambda flags: "-".join(f"{k}={v}" for k, v in flags.items()),
)
def test_every_flag_changes_the_picture(run, tmp_path, flags):
    assert run("--plms", outdir=tmp_path / "plain")[0] == 0
    assert run(**flags)[0] == 0
    seed = flags.get("seed", 321)
    plain = pixels(tmp_path / "plain/results/example_2_321.png")
    assert np.abs(plain - pixels(tmp_path / f"out/results/example_2_{seed}.png")).max() > 0


def test_a_preset(run, script, edit, example, tmp_path, monkeypatch):
    """The script's picture is the call's; its PNG says the numbers."""
    monkeypatch.setitem(PRESETS, "fast", Preset("ddim", 4, (200, 700), 2))
    assert run(preset="fast", ddim_steps=None)[0] == 0
    picture = Image.open(tmp_path / "out/results/example_2_321.png")
    kept = json.loads(picture.text["paint-by-example"])
    assert (kept["sampler"], kept["steps"], kept["interval"], kept["refresh"]) == ("ddim", 4, [200, 700], 2)
    assert picture.tobytes() == edit(**example, preset="fast", height=64, width=96, progress=False).tobytes()
    # --from repeats it by these numbers, without the preset's name
    again = ["--from", tmp_path / "out/results/example_2_321.png", "--outdir", tmp_path / "again", "--device", "cpu"]
    assert script("inference", *again)[0] == 0
    assert Image.open(tmp_path / "again/results/example_2_321.png").tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": "much"},
        {"regions": [{"file": "x"}]},
        {"regions": [{"box": [1, 2, 3]}]},
        {"regions": 5},
        {"references": [[7]]},
        {"interval": [1]},
        {"refresh": "often"},
        {"refresh": float("inf")},
        {"sampler": 3},
        {"invert": "yes"},
        {"lora": {}},
        {"together": [["a"], 5]},
    ],
    ids=str,
)
def test_bad_settings_in_a_picture_end_in_one_sentence(script, tmp_path, wrong):
    good = {"image": str(EXAMPLES / "image/example_2.jpg"), "regions": [{"box": [9, 9, 50, 50]}], "references": [["x"]]}
    save_with_settings(Image.new("RGB", (8, 8)), tmp_path / "a.png", good | wrong)
    code, out, err = script("inference", "--from", tmp_path / "a.png", "--outdir", tmp_path / "out")
    assert code == 2 and not out and "Traceback" not in err
    assert "settings that make no sense" in err or "region" in err or "box" in err
    assert not (tmp_path / "out").exists()


def test_flags_beside_from_take_precedence(run, script, tmp_path):
    """Regions and references are replaced all together, numbers one by one."""
    box = ["--box", "20,20,200,200", "--box", "300,100,500,300"]
    assert run(*box, mask_path=None, scale=2.0, n_samples=2)[0] == 0
    first = tmp_path / "out/results/example_2_322.png"
    again = ["--from", first, "--outdir", tmp_path / "again", "--device", "cpu"]
    assert script("inference", *again)[0] == 0
    assert (
        np.abs(pixels(first) - pixels(tmp_path / "again/results/example_2_322.png")).max() <= 1
    )  # two at once, and one
    assert script("inference", *again, "--seed", 5, "--box", "9,9,99,99", "--plms")[0] == 0
    kept = read_settings(tmp_path / "again/results/example_2_5.png")
    assert kept["regions"] == [{"box": [9, 9, 99, 99]}] and (kept["scale"], kept["seed"]) == (2.0, 5)


def test_flags_that_state_the_models_shape(run):
    assert run(C=4, f=8)[0] == 0


@pytest.mark.parametrize("name", ["photo.jpeg", "my.holiday.photo.jpg", "ü photo.tiff", "photo"])
def test_names_survive_any_extension(run, tmp_path, name):
    path = tmp_path / name
    Image.open(EXAMPLES / "image/example_2.jpg").save(path, "TIFF" if name.endswith("tiff") else "JPEG")
    assert run(image_path=path)[0] == 0
    stem = name.rsplit(".", 1)[0]
    assert (tmp_path / f"out/results/{stem}_321.png").exists()


@pytest.mark.parametrize(
    ("more", "flags", "words"),
    [
        ([], {"image_path": "nowhere.jpg"}, "image nowhere.jpg does not exist"),
        ([], {"mask_path": "nowhere.png"}, "mask nowhere.png does not exist"),
        ([], {"reference_path": ROOT / "README.md"}, "is not a picture"),
        ([], {"mask_path": "BLACK"}, "black.png has nothing to paint"),
        ([], {"mask_path": EXAMPLES / "mask/example_1.png"}, "example_1.png is 512 x 512 but the image is 600 x 400"),
        ([], {"H": 100}, "H 100 does not fit the model, which takes multiples of 32: use 96"),
        ([], {"W": 0}, "W 0 does not fit"),
        ([], {"scale": -2}, "scale -2.0 is out of range"),
        ([], {"scale": "nan"}, "scale nan is out of range"),
        ([], {"ddim_steps": 0}, "0 sampling steps are out of range"),
        ([], {"ddim_steps": 5000}, "5000 sampling steps are out of range"),
        ([], {"ddim_eta": 0.5}, "eta 0.5 does not go with plms"),
        ([], {"n_samples": 0}, "--n_samples 0 is out of range"),
        ([], {"n_iter": -1}, "--n_iter -1 is out of range"),
        ([], {"n_rows": -1}, "--n_rows -1 is out of range"),
        ([], {"seed": -5}, "seed -5 is out of range"),
        ([], {"C": 3}, "--C 3 does not fit the model"),
        ([], {"f": 4}, "--f 4 does not fit the model"),
        ([], {"device": "toaster"}, "device 'toaster' cannot be used here"),
        ([], {"sampler": "nosuch"}, "sampler 'nosuch' is unknown"),
        ([], {"seed": 2**63 - 1, "n_samples": 2}, "is out of range"),
        ([], {"precision": "double"}, "precision 'double' is unknown"),
        ([], {"scale": "five"}, "invalid float value"),
        (["--together", "5@x"], {}, "'5@x' is neither a scale nor scale@strength"),
        (["--plms"], {"sampler": "ddim"}, "contradict each other"),
        ([], {"preset": "slow"}, "preset 'slow' is unknown"),
        ([], {"preset": "fast"}, "preset fast and 2 steps contradict each other"),
        (["--plms"], {"preset": "draft", "ddim_steps": None}, "preset draft and sampler plms contradict each other"),
        (["--skip_save", "--skip_grid"], {}, "would write nothing"),
        ([], {"config": "nowhere.yaml"}, "config nowhere.yaml cannot be read"),
        ([], {"config": ROOT / "examples/README.md"}, "examples/README.md "),
        ([], {"config": ROOT / "environment.yaml"}, "has no 'model'"),
        ([], {"config": ROOT / "configs/v1.yaml"}, "does not fit the config"),
        ([], {"ckpt": "nowhere.ckpt"}, "checkpoint nowhere.ckpt cannot be read"),
        ([], {"ckpt": GOLDEN / "model.safetensors"}, "does not fit the config"),
        ([], {"ckpt": ROOT / "README.md"}, "neither a .ckpt nor a .safetensors"),
        ([], {"outdir": ROOT / "README.md"}, "cannot be written to (Not a directory)"),
        ([], {"outdir": ROOT / "README.md/deeper"}, "cannot be written to (Not a directory)"),
        ([], {"image_path": None}, "no photo is given: name one with --image_path"),
        ([], {"mask_path": None}, "no region is marked: use --mask_path, --box, --polygon, --alpha, --click or"),
        (["--box", "10,10,50,50"], {"reference_path": None}, "no reference is given: name one with --reference_path"),
        (["--box", "0.1,0.1,0.5,0.5"], {}, "0.1,0.1,0.5,0.5 are fractions: give x0,y0,x1,y1 in pixels"),
        (["--polygon", "0.1,0.1", "0.5,0.5"], {}, "0.1,0.1 are fractions: give x,y in pixels"),
        (["--bocks", "1,1,9,9"], {}, "unknown flag --bocks: did you mean --box?"),
        (["--maskpath=x"], {}, "unknown flag --maskpath: did you mean --mask_path?"),
        (["more.png"], {}, "more.png belongs to no flag"),
        (["--box", "10,10,50"], {}, "'10,10,50' is not of the form x0,y0,x1,y1"),
        (["--box", "10", "10", "50", "50"], {}, "'10' is not of the form x0,y0,x1,y1: give pixels of the photo, with"),
        (["--box", "50,50,10,10"], {}, "box 50,50,10,10 contains nothing of the photo, which is 600 x 400 pixels"),
        (["--polygon", "1,1", "9,9"], {}, "the polygon has 2 corners"),
        (["--alpha"], {}, "the photo has no transparent part"),
        (
            ["--box", "10,10,50,50"] * 2 + ["--reference_path", EXAMPLES / "reference/example_2.jpg"],
            {},
            "3 regions and 2 references",
        ),
        ([], {"grow": -500}, "has nothing left to paint"),
        ([], {"strength": 1.5}, "strength 1.5 is out of range"),
        ([], {"background": "blue"}, "background 'blue' is unknown"),
        ([], {"feather": -1}, "feather -1.0 is out of range"),
        ([], {"context": 0.5}, "context 0.5 is out of range"),
        ([], {"context": "all"}, "argument --context: invalid"),
        ([], {"reference_fit": "stretch"}, "reference_fit 'stretch' is unknown"),
        ([], {"from": EXAMPLES / "image/example_2.jpg"}, "contains no settings"),
        ([], {"n_samples": 10**9}, "--n_samples 1000000000 is out of range"),
        ([], {"H": 6400000}, "H 6400000 is too large: use at most 1024"),
        ([], {"outdir": "/" + "x" * 300}, "cannot be written to"),
        ([], {"ckpt": "/" + "x" * 300}, "cannot be read"),
        ([], {"device": "meta"}, "device 'meta' cannot be used here"),
    ],
    ids=lambda x: "",
)
def test_bad_input_gets_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, more, flags, words):
    monkeypatch.chdir(tmp_path)
    if flags.get("mask_path") == "BLACK":
        Image.new("L", (600, 400)).save(tmp_path / "black.png")
        flags = {"mask_path": tmp_path / "black.png"}
    before = files(tmp_path)
    code, out, err = run(*more, **flags)
    assert code == 2
    assert words in err, err
    assert "Traceback" not in err and not out
    message = [line for line in err.splitlines() if line.startswith("inference.py: error: ")]
    assert len(message) == 1
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_config_with_a_mistake_is_named(run, tmp_path):
    config = (ROOT / "configs/tiny.yaml").read_text()
    for old, new, words in (
        ("num_heads: 4", "num_haeds: 4", "missing 1 required keyword-only argument: 'num_heads'"),
        ("transformer_depth: 1", "transformer_dept: 1", "does not know 'transformer_dept'"),
        ("scale_factor: 0.18215", "scale_faktor: 0.18215", "scale_faktor"),
        ("ldm.models.autoencoder.AutoencoderKL", "ldm.models.autoencoder.Other", "'ldm.models.autoencoder.Other'"),
        ("  params:\n    linear_start: 0.00085", "  params: [\n", "is not valid YAML"),
        ("double_z: true", "double_z: false", "double_z is False: use True"),
        ("          in_channels: 3\n", "", "KeyError('in_channels')"),
        ("ch_mult: [1, 1, 2, 2]", "ch_mult: 4", "AutoencoderKL cannot be built"),
        ("model_channels: 32", "model_channels: 33", "cannot split 33 channels into 4 heads"),
        ("num_heads: 4", "num_heads: 3", "cannot split 32 channels into 3 heads"),
        ("num_attention_heads: 4", "num_attention_heads: 5", "FrozenCLIPImageEmbedder cannot be built"),
        ("timesteps: 1000", "timesteps: 0", "LatentDiffusion cannot be built"),
        ("scale_factor: 0.18215", "scale_factor: 0", "scale_factor is 0"),
        ("channels: 4", "channels: 3", "channels are 3 but the autoencoder's embed_dim is 4: use the same number"),
        ("image_size: 16", "image_size: x", "image_size is x"),
        ("linear_end: 0.0120", "linear_end: 5", "linear_end is 5: use 0 < linear_start <= linear_end < 1"),
    ):
        assert old in config
        (tmp_path / "c.yaml").write_text(config.replace(old, new))
        code, _, err = run(config=tmp_path / "c.yaml")
        assert code == 2 and words in err, err


def test_a_full_disk_leaves_nothing_half_written(tiny, tmp_path):
    """A real process whose files may not grow beyond 4 kB."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "import sys; sys.argv = ['inference.py', *sys.argv[1:]];"
        "import runpy; runpy.run_path('scripts/inference.py', run_name='__main__')"
    )
    flags = {
        "image_path": "examples/image/example_2.jpg",
        "mask_path": "examples/mask/example_2.png",
        "reference_path": "examples/reference/example_2.jpg",
        "config": "configs/tiny.yaml",
        "ckpt": tiny,
        "outdir": tmp_path / "out",
        "ddim_steps": 1,
    }
    args = [str(x) for name, value in flags.items() for x in (f"--{name}", value)]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "failed (File too large)" in done.stderr and "Traceback" not in done.stderr
    assert files(tmp_path / "out") == []


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
def test_no_permission(run):
    code, _, err = run(outdir="/proc/results")
    assert code == 2 and "/proc" in err and "Traceback" not in err


def test_a_file_in_the_place_of_a_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results").write_text("mine")
    code, _, err = run()
    assert code == 2 and "contains a file named results" in err
    assert files(tmp_path / "out") == ["results"]


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (15, 143)], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_leaves_nothing_half_written(tiny, tmp_path, signal, code):
    """A real process, interrupted while it samples."""
    args = ["--image_path", "examples/image/example_2.jpg", "--mask_path", "examples/mask/example_2.png"]
    args += ["--reference_path", "examples/reference/example_2.jpg", "--config", "configs/tiny.yaml"]
    args += ["--ckpt", str(tiny), "--outdir", str(tmp_path / "out"), "--ddim_steps", "900"]
    process = subprocess.Popen(
        # a shell's background jobs, these tests perhaps, ignore Ctrl-C, and so would this
        [sys.executable, "scripts/inference.py", *args],
        preexec_fn=lambda: signals.signal(signals.SIGINT, signals.SIG_DFL),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    shown = ""
    while "step/s]" not in shown.replace("?step/s]", "") and "s/step]" not in shown:  # the bar has begun to move
        more = process.stderr.read(1)
        assert more, shown
        shown += more
    process.send_signal(signal)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()

"""Pictures with the settings that they were made with."""

import numpy as np
import pytest
from PIL import Image

from ldm.cli.edit_flags import parse
from ldm.editing.metadata import find_files, places_file, read_settings, save_with_settings
from ldm.editing.regions import Region
from ldm.util import UserError
from tests.conftest import ROOT

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
SETTINGS = {"image": "ü photo.jpg", "scale": 5.0, "seed": 2**62, "regions": [{"box": [1, 2, 3, 4]}], "lora": None}


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp"])
def test_written_settings_are_read_back(tmp_path, name):
    save_with_settings(PICTURE, tmp_path / name, SETTINGS)
    assert read_settings(tmp_path / name) == {key: value for key, value in SETTINGS.items() if value is not None}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.lower().endswith("png"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(PICTURE))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_colour_profile_is_kept(tmp_path, name):
    from PIL import ImageCms

    picture = PICTURE.copy()
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_with_settings(picture, tmp_path / name, {})
    assert Image.open(tmp_path / name).info["icc_profile"] == picture.info["icc_profile"]


def test_pictures_without_settings_and_other_formats_are_errors(tmp_path):
    for name in ("a.png", "a.jpg"):
        PICTURE.save(tmp_path / name)
        with pytest.raises(UserError, match=r"contains no settings: give one .* save_with_settings"):
            read_settings(tmp_path / name)
    with pytest.raises(UserError, match=r"use \.png"):
        save_with_settings(PICTURE, tmp_path / "a.gif", {})


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    save_with_settings(PICTURE, tmp_path / "a.png", {"seed": 1})

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        save_with_settings(PICTURE, tmp_path / "a.png", {"seed": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_settings(tmp_path / "a.png") == {"seed": 1}


def test_a_sampler_beside_from_drops_the_other_settings_of_its_preset(tmp_path):
    made = {"image": "p.png", "regions": [{"box": [0, 0, 9, 9]}], "references": [["r.png"]]}
    preset = {"sampler": "dpm++", "steps": 12, "interval": [0, 850], "refresh": 2}
    save_with_settings(PICTURE, tmp_path / "a.png", made | preset)
    repeat = ["--from", str(tmp_path / "a.png")]
    assert (parse(repeat).interval, parse(repeat).refresh) == ((0, 850), 2)
    for given in (["--sampler", "unipc"], ["--plms"], ["--ddim_steps", "30"]):
        assert not vars(parse(repeat + given)).keys() & {"interval", "refresh"}


@pytest.mark.parametrize("context", [2.5, "photo"])
def test_settings_come_back_with_the_types_of_their_flags(tmp_path, context):
    made = {"image": "p.png", "regions": [{"alpha": True}], "references": [["r.png"]]}
    own = {"context": context, "grow": 3, "invert": True, "feather": 0.5, "height": 512, "seed": 7, "start": 5}
    save_with_settings(PICTURE, tmp_path / "a.png", made | own)
    opt = parse(["--from", str(tmp_path / "a.png")])
    assert (opt.context, opt.grow, opt.invert, opt.feather, opt.H, opt.seed, opt.start) == tuple(own.values())
    assert opt.regions == [Region(alpha=True)] and opt.references == [["r.png"]]
    save_with_settings(PICTURE, tmp_path / "a.png", made | {"context": "all"})
    with pytest.raises(UserError, match=r"a\.png has settings that make no sense"):
        parse(["--from", str(tmp_path / "a.png")])


def test_what_a_flag_replaces_takes_along_what_belongs_to_it(tmp_path):
    """A new reference has not the old one's mask, and another way to keep the layout not the other's measure."""
    made = {
        "image": "p.jpg",
        "regions": [{"box": [1, 2, 3, 4]}],
        "references": [["r.png"]],
        "reference_masks": [["m.png"]],
        "keep_layout": "pnp",
        "keep": 0.6,
    }
    save_with_settings(PICTURE, tmp_path / "a.png", made)
    repeat = ["--from", str(tmp_path / "a.png")]
    same, other = parse(repeat), parse([*repeat, "--reference_path", "new.jpg", "--keep_layout", "ddim"])
    assert (same.reference_masks, same.keep) == ([["m.png"]], 0.6)
    assert (other.references, other.reference_masks, other.keep) == ([["new.jpg"]], None, None)


def test_files_are_found_again_where_they_were_or_beside_the_picture(tmp_path, monkeypatch):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.jpg").touch()
    made = {"image": str(tmp_path / "a/photo.jpg"), "references": [[str(tmp_path / "b/photo.jpg")]], "ckpt": "hub"}
    path = tmp_path / "out.png"
    save_with_settings(
        PICTURE, path, made | {"regions": [{"mask": str(tmp_path / "a/photo.jpg")}, {"box": [1, 2, 3, 4]}]}
    )
    kept = read_settings(path)
    assert kept["image"] == "photo.jpg" and kept["references"] == [["photo.jpg#2"]] and kept["ckpt"] == "hub"
    assert kept["regions"] == [{"mask": "photo.jpg"}, {"box": [1, 2, 3, 4]}]
    assert find_files(path, kept) == made | {"regions": [{"mask": made["image"]}, {"box": [1, 2, 3, 4]}]}
    # passed on beside one of the files; the other, of the same name, is not mistaken for it
    moved = tmp_path / "c/out.png"
    path.rename(moved)
    found = find_files(moved, kept)
    assert found["image"] == str(tmp_path / "c/photo.jpg") and found["references"] == [["photo.jpg#2"]]
    # settings of older pictures name folders
    monkeypatch.chdir(tmp_path / "a")
    assert find_files(moved, {"image": "x/y/photo.jpg"})["image"] == str(tmp_path / "c/photo.jpg")
    ships = ROOT / "pretrained_models/mini_detail.safetensors"  # the page's detail path, named without its folder
    assert find_files(moved, {"detail": ships.name})["detail"] == str(ships)
    long = tmp_path / ("x" * 251 + ".png")
    assert len(places_file(long).name) <= 255 and places_file(long) != places_file(tmp_path / ("y" * 251 + ".png"))

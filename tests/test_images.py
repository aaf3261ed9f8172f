"""Pictures of every kind, and masks that follow them."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ldm.conventions import (
    CLIP_MEAN,
    CLIP_STD,
    image_to_tensor,
    mask_to_image,
    mask_to_tensor,
    reference_to_tensor,
    resize_tensor,
    tensor_to_image,
)
from ldm.images import (
    ORIENTATION,
    TURNS,
    grid,
    open_picture,
    picture_endings,
    upright_alpha,
    upright_mask,
    upright_photo,
    upright_rgb,
)
from ldm.util import UserError, UserNote
from tests.conftest import ROOT

RAMP = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (32, 1))  # 48 wide, 32 high, dark on the left
RGB = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 100)], axis=-1)


def saved(image, path, **options):
    image.save(path, **options)
    return open_picture(path, "image")


def test_every_mode_becomes_the_same_rgb(tmp_path):
    image = Image.fromarray(RGB)
    grey = Image.fromarray(RAMP)
    exact = {
        "RGB": saved(image, tmp_path / "a.png"),
        "RGBA": saved(image.convert("RGBA"), tmp_path / "b.png"),
        "bmp": saved(image, tmp_path / "c.bmp"),
        "webp": saved(image, tmp_path / "d.webp", lossless=True),
    }
    for name, opened in exact.items():
        assert np.array_equal(np.asarray(upright_rgb(opened)), RGB), name
    greys = {
        "L": saved(grey, tmp_path / "e.png"),
        "LA": saved(grey.convert("LA"), tmp_path / "f.png"),
        "P": saved(grey.convert("P"), tmp_path / "g.png"),
        "16 bit": saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / "h.png"),
        "16 bit tiff": saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / "h.tif"),
        "32 bit": saved(Image.fromarray(RAMP.astype(np.int32) * 257), tmp_path / "i.tif"),
        "float": saved(Image.fromarray(RAMP.astype(np.float32) / 255), tmp_path / "j.tif"),
    }
    for name, opened in greys.items():
        assert np.array_equal(np.asarray(upright_rgb(opened)), np.stack([RAMP] * 3, axis=-1)), name
    cmyk = upright_rgb(saved(image.convert("CMYK"), tmp_path / "k.jpg", quality=100))
    assert np.abs(np.asarray(cmyk).astype(int) - RGB).mean() < 3
    palette = upright_rgb(saved(image.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "l.png"))
    assert np.abs(np.asarray(palette).astype(int) - RGB).mean() < 10
    one_bit = upright_rgb(saved(grey.convert("1", dither=Image.Dither.NONE), tmp_path / "m.png"))
    assert set(np.unique(np.asarray(one_bit))) == {0, 255}


def test_what_is_transparent_is_white_in_a_photo_and_kept_in_a_mask(tmp_path):
    rgba = np.dstack([RGB, np.zeros_like(RAMP)])
    rgba[:, 24:, 3] = 255
    opened = saved(Image.fromarray(rgba), tmp_path / "a.png")
    out = np.asarray(upright_rgb(opened))
    assert (out[:, :24] == 255).all() and np.array_equal(out[:, 24:], RGB[:, 24:])
    white = Image.fromarray(np.dstack([np.full_like(RGB, 255), rgba[..., 3]]))
    mask = np.asarray(upright_mask(white, Image.fromarray(RGB)))
    assert (mask[:, :24] == 0).all() and (mask[:, 24:] == 255).all()


def rotated(orientation):
    """The ramp as a camera held sideways stores it: pixels turned, the EXIF tag saying so."""
    upright = Image.fromarray(RGB)
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image = upright.transpose(stored[orientation])
    image.getexif()[ORIENTATION] = orientation
    return image


def test_unreadable_exif_is_ignored(tmp_path):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09"):
        opened = saved(Image.fromarray(RGB), tmp_path / "a.png", exif=exif)
        assert np.array_equal(np.asarray(upright_rgb(opened)), RGB)
        mask = Image.new("L", (48, 32), 255)
        assert upright_mask(mask, opened).size == (48, 32)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_rotation(orientation, tmp_path):
    image = rotated(orientation)
    opened = saved(image, tmp_path / "photo.jpg", quality=100, exif=image.getexif())
    out = np.asarray(upright_rgb(opened)).astype(int)
    assert out.shape == RGB.shape and np.abs(out - RGB).mean() < 4
    # painted over the upright picture, as a viewer shows it
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 10, 10))
    assert np.array_equal(np.asarray(upright_mask(mask, opened)), np.asarray(mask))
    if orientation != 3:  # painted over the pixels as stored, by a tool that ignores EXIF
        turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
        assert np.array_equal(np.asarray(upright_mask(mask.transpose(turn), opened)), np.asarray(mask))


def test_masks_of_other_sizes_and_shapes():
    image = Image.new("RGB", (4000, 3000))
    for size in ((512, 384), (400, 300), (4000, 3000), (333, 250)):
        assert upright_mask(Image.new("L", size, 255), image).size == size
    for size in ((512, 512), (3000, 4000), (400, 200)):
        with pytest.raises(UserError, match="use a mask with the image's proportions"):
            upright_mask(Image.new("L", size, 255), image)


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "1", "P", "16"])
def test_masks_of_every_mode(kind):
    mask = Image.new("L", (48, 32))
    mask.paste(255, (5, 5, 20, 20))
    made = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257) if kind == "16" else mask.convert(kind)
    assert np.array_equal(np.asarray(upright_mask(made, Image.fromarray(RGB))), np.asarray(mask))


def test_files_that_are_not_pictures_are_errors(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(png, "PNG")
    (tmp_path / "cut.png").write_bytes(png.getvalue()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    qoi = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(qoi, "QOI")
    (tmp_path / "cut.qoi").write_bytes(qoi.getvalue()[:16])
    for name, words in (
        ("missing.png", "does not exist"),
        ("text.png", "is not a picture"),
        ("cut.png", "cannot be read"),
        ("cut.qoi", "cannot be read"),
        ("empty.png", "is not a picture"),
        (".", "is a folder"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_picture(tmp_path / name, "reference")
        assert "reference" in str(error.value) and "\n" not in str(error.value)


def test_heic_is_read_or_the_library_named_that_reads_it(tmp_path):
    """On machines with and without pillow-heif."""
    path = tmp_path / "phone.heic"
    if ".heic" in picture_endings():
        Image.new("RGB", (40, 30), "orange").save(path)
        picture = upright_rgb(open_picture(path, "image"))
        assert picture.size == (40, 30)
        assert np.abs(np.subtract(picture.getpixel((20, 15)), ImageColor.getrgb("orange"))).max() < 8
    else:
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        with pytest.raises(UserError, match=r"phone.heic is not a picture that can be read: pip install pillow-heif"):
            open_picture(path, "image")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 400 // 3)
    with pytest.raises(UserError, match="too many pixels"):
        open_picture(tmp_path / "bomb.png", "image")


def test_pictures_and_tensors_are_inverse():
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    tensor = image_to_tensor(levels)
    assert tensor.min() == -1 and tensor.max() == 1 and tensor.shape == (3, 16, 16)
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), np.asarray(levels))
    assert np.asarray(tensor_to_image(tensor * 9)).max() == 255


def test_masks_are_cut_at_one_half():
    mask = Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8))
    tensor = mask_to_tensor(mask)
    assert tensor.tolist() == [[[1, 1, 0, 0]]]  # 1 = keep
    assert np.asarray(mask_to_image(tensor)).tolist() == [[0, 0, 255, 255]]


def test_the_reference_is_squashed_and_normalised_as_clip_wants_it():
    from transformers import CLIPImageProcessor

    wide = Image.fromarray(RGB).resize((300, 100))
    wide.paste((255, 0, 0), (0, 0, 30, 100))  # at the left edge, where a centre crop would lose it
    ours = reference_to_tensor(wide, 224)
    clip = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    theirs = clip(wide.resize((224, 224), Image.Resampling.BICUBIC), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(ours[:, 100, 5], red, rtol=0, atol=0.05)


def test_tensors_are_resized_without_antialias():
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 0, 0] = 1.0  # between the sample points of an 8-fold reduction: seen only with antialias
    assert resize_tensor(x, (2, 2)).abs().max() == 0
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    assert resize_tensor(ramp, (2, 2))[0, 0, 0].tolist() == [3.5, 11.5]


def test_grid():
    cells = [Image.new("RGB", (10, 6), colour) for colour in ("red", "green", "blue", "black", "yellow")]
    sheet = grid(cells, rows=2, gap=2)
    assert sheet.size == (3 * 12 - 2, 2 * 8 - 2)
    assert sheet.getpixel((0, 0)) == (255, 0, 0) and sheet.getpixel((12, 8)) == (255, 255, 0)


def test_every_ending_of_a_format_whose_pixels_pillow_reads_is_a_picture(tmp_path):
    modes = {"BLP": "P", "MSP": "1", "XBM": "1"}  # formats that cannot hold RGB
    for ending in sorted(picture_endings()):
        if (kind := Image.registered_extensions()[ending]) in Image.SAVE:
            picture = Image.new("RGB", (32, 32), "white").convert(modes.get(kind, "RGB"))
            picture.save(tmp_path / f"a{ending}", kind)
            assert upright_rgb(open_picture(tmp_path / f"a{ending}", "image")).getpixel((9, 9)) >= (250,) * 3, ending
    assert {".jpg", ".jfif", ".jpe", ".gif", ".jp2", ".ppm", ".webp", ".tif", ".bmp", ".mpo"} <= picture_endings()
    assert not {".txt", ".xml", ".json", ".csv", ".h5", ".pdf", ".eps", ".mpg", ".npy"} & picture_endings()


def test_a_mask_that_is_a_photo_is_told_and_a_soft_one_is_not():
    photo = Image.open(ROOT / "examples/image/example_1.jpg").convert("RGB").resize((320, 240))
    mask = Image.open(ROOT / "examples/mask/example_1.png").convert("L").resize(photo.size)
    erased = photo.copy()
    erased.putalpha(ImageOps.invert(mask))
    for given, cure in ((photo, "white, on black"), (photo.convert("L"), "white, on black"), (erased, "--alpha")):
        with pytest.warns(UserNote, match=f"looks like a photo.*{cure}"):
            upright_mask(given, photo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for softness in (0, 1, 4, 12, 24):
            upright_mask(mask.filter(ImageFilter.GaussianBlur(softness)), photo)
        jpeg = io.BytesIO()
        mask.convert("RGB").save(jpeg, "JPEG", quality=20)
        upright_mask(Image.open(jpeg), photo)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_uncompressed_tiff_that_lies_on_its_side_keeps_its_pixels(tmp_path, orientation, mode):
    """Pillow maps these pixels into memory with the sides of the upright picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 4), np.uint8)
    if mode == "I;16":
        stored = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        stored = Image.fromarray(pixels).convert(mode)
    tags = ImageFileDirectory_v2()
    tags[ORIENTATION] = orientation
    stored.save(tmp_path / "turned.tif", tiffinfo=tags)
    right = stored.transpose(TURNS[orientation]) if orientation > 1 else stored
    for picture in (open_picture(tmp_path / "turned.tif", "photo"), Image.open(tmp_path / "turned.tif")):
        assert np.array_equal(np.asarray(upright_rgb(picture)), np.asarray(upright_rgb(right)))


def test_a_text_that_pillow_files_among_what_it_knows_of_the_pixels_changes_nothing():
    texts = PngInfo()
    for key in ("transparency", "bits", "icc_profile", "exif", "background"):
        texts.add_text(key, "7")
    buffer = io.BytesIO()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8))
    photo.save(buffer, "PNG", pnginfo=texts)
    for read in (upright_rgb, upright_photo):
        assert np.array_equal(np.asarray(read(Image.open(buffer))), np.asarray(photo))
    assert upright_alpha(Image.open(buffer)) is None


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Ghostscript would run an EPS, which may be any program of a stranger's."""
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript was started")
    )
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    for name in ("a.eps", "a.png"):
        (tmp_path / name).write_bytes(eps)
        assert Image.open(tmp_path / name).format == "EPS"
        for data in (None, eps):
            with pytest.raises(UserError, match="is not a picture that can be read: use PNG or JPEG"):
                open_picture(tmp_path / name, "image", data)

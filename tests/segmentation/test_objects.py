"""Objects by clicks and boxes: GrabCut on scenes whose outlines are known, a toy SAM 2 through its real loading."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.cli import edit_flags
from ldm.editing.marked import MarkedPhoto
from ldm.editing.options import Placement
from ldm.editing.regions import Region
from ldm.miniworld.outlines import centre, iou
from ldm.miniworld.scene import outlined_scene
from ldm.segmentation.objects import Prompt, find_object, load_segmenter, without_background
from ldm.util import UserError

SCENES = [outlined_scene((0, 77, number), (192, 144)) for number in range(6)]
OBJECTS = [(Image.fromarray(picture), each, outline) for picture, found in SCENES for each, outline in found]


def white(mask):
    return np.asarray(mask) > 127


def disc(size=(90, 60), middle=(40, 30), radius=15):
    """A red disc on a green ground -> (picture, its pixels)."""
    ys, xs = np.mgrid[: size[1], : size[0]]
    inside = np.hypot(xs - middle[0], ys - middle[1]) < radius
    pixels = np.where(inside[..., None], (200, 30, 30), (40, 140, 60)) + np.random.default_rng(0).integers(-9, 9, 3)
    return Image.fromarray(pixels.astype(np.uint8)), inside


def test_grabcut_finds_the_small_worlds_objects():
    boxes = [iou(find_object(picture, Prompt(each.box)), outline) for picture, each, outline in OBJECTS]
    clicks = [iou(find_object(picture, Prompt(clicks=(centre(outline),))), outline) for picture, _, outline in OBJECTS]
    assert np.mean(boxes) > 0.85 and np.mean(clicks) > 0.75


def test_grabcut_gives_the_same_twice_and_is_exact_on_a_plain_disc():
    picture, inside = disc()
    for prompt in (
        Prompt(clicks=((40, 30),)),
        Prompt((15, 5, 65, 55)),
        Prompt((15, 5, 65, 55), ((40, 30),), ((1, 1),)),
    ):
        mask = find_object(picture, prompt)
        assert iou(mask, inside) > 0.97 and np.array_equal(mask, find_object(picture, prompt))


def test_an_object_of_a_large_photo_is_found_in_little_time():
    picture, inside = disc((4000, 3000), (3000, 2000), 200)
    assert iou(find_object(picture, Prompt((2700, 1700, 3300, 2300))), inside) > 0.95


def test_a_negative_click_takes_a_part_away():
    picture, _ = disc()
    picture.paste((200, 120, 30), (40, 5, 70, 55))
    whole, part = (Prompt((10, 2, 75, 58), ((32, 30),), beside) for beside in ((), ((60, 30),)))
    assert white(find_object(picture, whole))[30, 60] and not white(find_object(picture, part))[30, 60]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(clicks=((90, 10),)), "click 90,10 is not on the photo, which is 90 x 60 pixels"),
        (Prompt(clicks=((10, 10),), clicks_not=((-1, 3),)), "click -1,3 is not on the photo"),
        (Prompt((100, 0, 120, 50)), "contains nothing of the photo"),
        (Prompt((0, 0, 90, 60)), "no object is found in the box: add a click"),
    ],
)
def test_what_cannot_be_found_is_a_sentence(prompt, words):
    with pytest.raises(UserError, match=words):
        find_object(disc()[0], prompt)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (400, 2)])
def test_pictures_of_a_few_pixels(size):
    with pytest.raises(UserError):
        without_background(Image.new("RGB", size))


def test_references_lose_their_background():
    picture, inside = disc()
    cut = without_background(picture)
    assert cut.mode == "RGBA" and iou(cut.getchannel("A"), inside) > 0.97
    with pytest.raises(UserError, match="shows no object that stands out"):
        without_background(Image.new("RGB", (60, 40), "blue"))
    box = Region(box=(1, 2, 30, 40))
    marked = MarkedPhoto.mark(picture, [box], [(picture, cut)], Placement(reference_cutout=True))
    assert marked.references[0][0].mode == "RGBA" and marked.references[0][1] is cut


@pytest.mark.parametrize(
    "region",
    [
        Region(click=(40, 30)),
        Region(click=((40, 30), (41, 32)), click_not=[(2, 3)]),
        Region(snap=(15, 5, 65, 55), click_not=np.array([[2, 3]])),
    ],
)
def test_clicked_regions(region):
    picture, inside = disc()
    assert iou(region.mask_in(picture), inside) > 0.97
    assert Region.from_settings(json.loads(json.dumps(region.settings))) == region


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"click_not": (1, 2)}, "click_not is beside an object that nothing marks"),
        ({"click": (1, 2), "box": (1, 2, 3, 4)}, "exactly one"),
        ({"click": []}, "exactly one"),
        ({"click": "1,2"}, "is not a list of points"),
        ({"click": (0.5, 0.5)}, "not fractions"),
        ({"snap": (1, 2, 3)}, "is not 4 numbers"),
    ],
)
def test_wrong_clicks_are_a_sentence(wrong, words):
    with pytest.raises(UserError, match=words):
        Region(**wrong)


def test_the_flags_collect_the_clicks_of_an_object():
    def regions(line):
        return edit_flags.parse(["--image", "photo.jpg", *line.split()]).regions

    assert regions("--click 1,2 --click 3,4 --click_not 5,6 --reference a.png") == [
        Region(click=((1, 2), (3, 4)), click_not=((5, 6),))
    ]
    assert regions("--reference a.png --snap 1,2,30,40 --click-not 5,6") == [
        Region(snap=(1, 2, 30, 40), click_not=((5, 6),))
    ]
    assert regions("--click 1,2 --reference a.png --click 3,4 --reference b.png") == [
        Region(click=(1, 2)),
        Region(click=(3, 4)),
    ]
    assert regions("--box 1,2,3,4 --click 3,4 --reference b.png") == [Region(box=(1, 2, 3, 4)), Region(click=(3, 4))]
    with pytest.raises(UserError, match="click_not is beside an object that nothing marks"):
        regions("--click_not 3,4 --reference b.png")


# ------------------------------------------------------------------------------------------------ SAM 2


@pytest.fixture(scope="module")
def toy_sam(tmp_path_factory):
    """The folder of a SAM 2 of random weights."""
    import torch

    transformers = pytest.importorskip("transformers", minversion="4.56")
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    folder = tmp_path_factory.mktemp("sam")
    transformers.Sam2Model(config).save_pretrained(folder)
    from transformers.models.sam2 import image_processing_sam2 as images

    processor = getattr(images, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
    transformers.Sam2Processor(processor(size={"height": 64, "width": 64})).save_pretrained(folder)
    return folder


def test_a_toy_sam_answers_every_prompt(toy_sam):
    picture = disc()[0]
    masks = [
        load_segmenter(str(toy_sam))(np.asarray(picture), prompt)
        for prompt in (
            Prompt(clicks=((40, 30),)),
            Prompt((15, 5, 65, 55)),
            Prompt((15, 5, 65, 55), ((40, 30),), ((1, 1), (2, 2))),
        )
    ]
    assert all(mask.shape == (60, 90) and mask.dtype == bool for mask in masks)
    assert any((masks[0] != mask).any() for mask in masks[1:])


def test_sam_marks_a_region(toy_sam):
    placement = Placement(segment=str(toy_sam))
    assert white(Region(click=(40, 30)).mask_in(disc()[0], placement)).any()


def test_folders_that_are_no_sam_are_a_sentence(toy_sam, tmp_path):
    with pytest.raises(UserError, match=r"has no config.json: use grabcut, hub, or the folder of"):
        find_object(disc()[0], Prompt((1, 1, 50, 50)), str(tmp_path))
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        if (toy_sam / name).exists():
            (tmp_path / name).write_bytes((toy_sam / name).read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        find_object(disc()[0], Prompt((1, 1, 50, 50)), str(tmp_path))

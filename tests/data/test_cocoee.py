"""COCOImageDataset: the benchmark as a data set."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.conventions import CLIP_MEAN, CLIP_STD
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.util import UserError


@pytest.fixture
def bench(tmp_path):
    for i, name in enumerate(("000000000007", "000000000042")):
        for folder, suffix, picture in (
            ("GT_3500", "GT", Image.new("RGB", (64, 64), (255, 0, 0))),
            ("Mask_bbox_3500", "mask", Image.new("L", (64, 64))),
            ("Ref_3500", "ref", Image.new("RGB", (30, 50), (0, 0, 255))),
        ):
            if suffix == "mask":
                picture.paste(255, (10 + i, 10, 30, 40))
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"{name}_{suffix}.png")
    return tmp_path


@pytest.mark.parametrize("listed", [False, True])
def test_the_benchmark(bench, listed):
    if listed:
        np.save(bench / "id_list.npy", np.array([42]))
    dataset = COCOImageDataset(str(bench))
    assert [entry["id"] for entry in dataset] == (["000000000042"] if listed else ["000000000007", "000000000042"])
    entry = dataset[len(dataset) - 1]
    expected = torch.ones(1, 64, 64)
    expected[:, 10:40, 11:30] = 0
    assert torch.equal(entry["inpaint_mask"], expected)
    assert torch.equal(entry["GT"], torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, 64, 64))
    assert torch.equal(entry["inpaint_image"], entry["GT"] * expected)
    blue = (torch.tensor([0.0, 0, 1]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(entry["ref_imgs"], blue.view(3, 1, 1).expand(3, 224, 224))


def test_other_names_and_masks_of_another_size(bench):
    for folder, suffix in (("GT_3500", "GT"), ("Mask_bbox_3500", "mask"), ("Ref_3500", "ref")):
        (bench / folder / f"000000000007_{suffix}.png").rename(bench / folder / f"cat_{suffix}.png")
    Image.open(bench / "Mask_bbox_3500/cat_mask.png").resize((128, 128)).save(bench / "Mask_bbox_3500/cat_mask.png")
    entry = COCOImageDataset(str(bench))[1]
    assert entry["id"] == "cat" and entry["inpaint_mask"].shape == (1, 64, 64)
    assert (entry["inpaint_mask"] == 0).sum() == 20 * 30


def test_a_benchmark_that_is_not_there(bench):
    with pytest.raises(UserError, match="has no <id>_GT"):
        COCOImageDataset(str(bench / "elsewhere"))
    (bench / "Ref_3500/000000000007_ref.png").unlink()
    with pytest.raises(UserError, match=r"000000000007_ref\.png does not exist"):
        COCOImageDataset(str(bench))[0]
    np.save(bench / "id_list.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"id_list\.npy cannot be read"):
        COCOImageDataset(str(bench))

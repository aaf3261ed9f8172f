"""COCOImageDataset: the COCOEE benchmark, photos with a region and a reference of what to paint there.

    <test_bench_dir>/GT_3500/<id>_GT.png
                     Mask_bbox_3500/<id>_mask.png      255 = edit
                     Ref_3500/<id>_ref.png
                     id_list.npy

An id has 12 digits. Another set of pictures in these folders does as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor
from ldm.images import open_picture, upright_mask, upright_rgb
from ldm.util import UserError


class COCOImageDataset(Dataset):
    """`dataset[i]` -> id, GT (3,H,W), inpaint_image, inpaint_mask (1,H,W), ref_imgs (3,224,224).

    The cases are those of id_list.npy, or, where there is none, of GT_3500's files, sorted.
    Raises UserError: no such folder, no case in it; when indexed: a file missing or damaged."""

    def __init__(self, test_bench_dir: str = "test_bench"):
        self.root = Path(test_bench_dir)
        listed = self.root / "id_list.npy"
        if listed.exists():
            try:
                ids = np.load(listed, allow_pickle=False).reshape(-1).tolist()
            except (OSError, ValueError) as error:
                raise UserError(f"{listed}: cannot be read ({error}); remove it to take every case there is") from error
        else:
            ids = sorted(path.name.removesuffix("_GT.png") for path in self.root.glob("GT_3500/*_GT.png"))
        self.ids = [name if isinstance(name, str) else f"{name:012}" for name in ids]
        if not self.ids:
            raise UserError(f"{self.root}/GT_3500: has no <id>_GT.png; name the folder of the benchmark")

    def __len__(self) -> int:
        return len(self.ids)

    def photo(self, name: str) -> Path:
        """The file of a case's photo."""
        return self.root / "GT_3500" / f"{name}_GT.png"

    def pictures(self, i: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Photo (RGB), mask (L, 255 = edit, of the photo's size) and reference (RGB), upright. Raises UserError."""
        name = self.ids[i]
        photo = open_picture(self.photo(name), "image")
        marked = open_picture(self.root / "Mask_bbox_3500" / f"{name}_mask.png", "mask")
        reference = open_picture(self.root / "Ref_3500" / f"{name}_ref.png", "reference")
        picture = upright_rgb(photo)
        white = upright_mask(marked, photo)
        if white.size != picture.size:
            white = white.resize(picture.size, Image.Resampling.BILINEAR)
        return picture, white, upright_rgb(reference)

    def __getitem__(self, i: int) -> dict[str, Tensor | str]:
        picture, white, reference = self.pictures(i)
        image, mask = image_to_tensor(picture), mask_to_tensor(white)
        return {
            "id": self.ids[i],
            "GT": image,
            "inpaint_image": image * mask,
            "inpaint_mask": mask,
            "ref_imgs": reference_to_tensor(reference),
        }

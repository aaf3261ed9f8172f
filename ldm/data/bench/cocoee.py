"""COCOImageDataset, the COCOEE benchmark: photos, each with a region and a reference that shows what to paint there.

    <test_bench_dir>/GT_3500/<id>_GT.png
                     Mask_bbox_3500/<id>_mask.png      255 = edit
                     Ref_3500/<id>_ref.png
                     id_list.npy

An id has 12 digits in COCOEE. Other pictures in these folders, under any ids, work as well."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.conventions import image_to_tensor, mask_to_tensor, reference_to_tensor
from ldm.images import open_picture, size_in_header, upright_mask, upright_rgb
from ldm.util import UserError

FILES = {"GT_3500": "GT", "Mask_bbox_3500": "mask", "Ref_3500": "ref"}  # folder -> suffix: <id>_<suffix>.png


def case_id(number: int) -> str:
    """12 digits, like the ids of COCO's pictures."""
    return f"{number:012}"


def case_path(bench: Path, folder: str, name: str) -> Path:
    """A case's file in one of the folders of FILES."""
    return bench / folder / f"{name}_{FILES[folder]}.png"


def result_path(results: Path, name: str) -> Path:
    """The edited picture of a case."""
    return results / f"{name}.png"


def raise_on_problems(problems: dict[str, str], count: int, action: str, cure: str) -> None:
    """Raise UserError if there are any problems; it names the first three.

    problems: id -> message; count: of all cases; action: what is impossible for the others, such as "be scored"; cure:
    what the user can do."""
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        examples = "; ".join(list(problems.values())[:3])
        raise UserError(f"{len(problems)} of {count} cases cannot {action} ({examples}{more}): {cure}")


class COCOImageDataset(Dataset):
    """`dataset[i]` -> id, GT (3,H,W), inpaint_image, inpaint_mask (1,H,W), ref_imgs (3,224,224).

    The cases are those in id_list.npy; without that file, each file in GT_3500 is a case, sorted by id.
    Raises UserError: no such folder, no case in it; when indexed: a file missing or damaged."""

    def __init__(self, test_bench_dir: str = "test_bench"):
        self.root = Path(test_bench_dir)
        listed = self.root / "id_list.npy"
        if listed.exists():
            self.ids = _read_ids(listed)
        else:
            self.ids = sorted(path.name.removesuffix("_GT.png") for path in self.root.glob("GT_3500/*_GT.png"))
        if not self.ids:
            raise UserError(f"{self.root}/GT_3500 has no <id>_GT.png: name the folder of the benchmark")

    def __len__(self) -> int:
        return len(self.ids)

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) of a case's photo, from its header. Raises UserError."""
        return size_in_header(case_path(self.root, "GT_3500", name))

    def digest(self) -> str:
        """SHA-256 of the ids and the sizes of the files, hexadecimal: differs from one benchmark to another."""
        digest = hashlib.sha256()
        for name in self.ids:
            files = [case_path(self.root, folder, name) for folder in FILES]
            sizes = [file.stat().st_size if file.exists() else 0 for file in files]
            digest.update(f"{name}\0{sizes}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def problems(self) -> dict[str, str]:
        """Id -> message, for each case with a missing file or a damaged header."""
        found = {}
        for name in self.ids:
            try:
                for folder in FILES:
                    size_in_header(case_path(self.root, folder, name))
            except UserError as error:
                found[name] = str(error)
        return found

    def pictures(self, i: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Photo (RGB), mask (L, 255 = edit, of the photo's size) and reference (RGB), upright. Raises UserError."""
        name = self.ids[i]
        photo, marked, reference = (
            open_picture(case_path(self.root, folder, name), kind)
            for folder, kind in zip(FILES, ("image", "mask", "reference"), strict=True)
        )
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


def _read_ids(path: Path) -> list[str]:
    """Raises UserError: a damaged file, or an id that cannot be part of a file name or occurs twice."""
    try:
        array = np.load(path, allow_pickle=False)
        if array.dtype.kind not in "iuU":
            raise ValueError(f"it contains {array.dtype}, not integers or strings")
        ids = [name if isinstance(name, str) else case_id(name) for name in array.reshape(-1).tolist()]
        wrong = [name for name in ids if Path(name).name != name or name in ("", "..") or "\\" in name or "\0" in name]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not an id")
        if len(set(ids)) < len(ids):
            raise ValueError("an id occurs twice")
    except Exception as error:  # numpy and zipfile raise errors of many types
        raise UserError(f"{path} cannot be read ({error}): remove it to use all cases in the folders") from error
    return ids

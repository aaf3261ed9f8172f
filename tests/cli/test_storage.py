"""The commands read and write files in storage as they do those of a disk."""

import fsspec
import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint.load import read_checkpoint
from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.images import open_picture
from ldm.storage import place
from tests.batch.test_runner import BENCH, IDS
from tests.conftest import empty_memory

NAME = IDS[0]
FILES = {
    "image": f"GT_3500/{NAME}_GT.png",
    "mask": f"Mask_bbox_3500/{NAME}_mask.png",
    "reference": f"Ref_3500/{NAME}_ref.png",
}
BOX = "memory://box"


@pytest.fixture
def box(tmp_path, monkeypatch):
    empty_memory()
    monkeypatch.setenv("PAINT_BY_EXAMPLE_CACHE", str(tmp_path / "fetched"))
    for file in FILES.values():
        (place(BOX) / file).upload(BENCH / file)
    (place(BOX) / "mini.safetensors").upload(MINI_CKPT)
    return place(BOX)


def edit(script, root, outdir, ckpt, *flags):
    paths = [word for kind, file in FILES.items() for word in (f"--{kind}_path", f"{root}/{file}")]
    model = ["--config", MINI_CONFIG, "--ckpt", ckpt, "--device", "cpu", "--ddim_steps", 2]
    return script("inference", *paths, *model, "--outdir", outdir, *flags)


def test_an_edit_in_storage_is_that_of_the_disk(box, tmp_path, script):
    for root, outdir, ckpt in ((BENCH, tmp_path / "out", MINI_CKPT), (BOX, f"{BOX}/out", f"{BOX}/mini.safetensors")):
        code, _, err = edit(script, root, outdir, ckpt)
        assert code == 0, err
    name = f"{NAME}_GT_321.png"
    here = np.asarray(Image.open(tmp_path / "out/results" / name))
    assert np.array_equal(here, np.asarray(open_picture(f"{BOX}/out/results/{name}", "result")))
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    )
    assert files == sorted(path.removeprefix("/box/out/") for path in fsspec.filesystem("memory").find("/box/out"))
    code, out, err = edit(script, BOX, f"{BOX}/out", f"{BOX}/mini.safetensors", "--scale", 2)
    assert code == 0 and f"kept the earlier {BOX}/out/results/{name}" in out, err
    code, _, err = script(
        "inference", "--from", f"{BOX}/out/results/{NAME}_GT_321-1.png", "--outdir", tmp_path / "again"
    )
    assert code == 0, err
    assert np.array_equal(here, np.asarray(Image.open(tmp_path / "again/results" / name)))


def test_results_cannot_go_where_one_only_reads(box, script):
    code, out, err = edit(script, BOX, "https://host/out", MINI_CKPT)
    assert code == 2 and "https://host/out cannot be written, as https:// only reads" in err and not out


def test_a_checkpoint_is_converted_in_storage(box, script):
    code, _, err = script("convert_checkpoint", box / "mini.safetensors", box / "half.ckpt", "--half")
    assert code == 0, err
    assert read_checkpoint(box / "half.ckpt").keys() == read_checkpoint(MINI_CKPT).keys()
    code, _, err = script("convert_checkpoint", box / "nowhere.ckpt", box / "half.ckpt")
    assert code == 2 and "memory://box/nowhere.ckpt does not exist" in err


def test_a_run_of_training_stays_on_the_disk(script):
    code, _, err = script("main", "--base", "configs/tiny.yaml", "--project", f"{BOX}/run")
    assert code == 2 and "memory://box/run is in storage: name a folder of this machine" in err


def test_a_table_in_storage(box, script, monkeypatch, tmp_path):
    row = ",".join(f"../{FILES[kind]}" for kind in ("image", "mask", "reference"))
    (box / "tables/jobs.csv").write_bytes(
        f"image,mask,reference,out\n{row},1.jpg\n{row},2.webp\n{row},https://host/3.png\n{row},{BOX}/4.png\n".encode()
    )
    model = ["--config", MINI_CONFIG, "--ckpt", MINI_CKPT, "--device", "cpu", "--ddim_steps", 2]
    code, out, err = script("edit_batch", box / "tables/jobs.csv", *model)
    assert code == 2 and "1 of 4 rows" in err and "line 4: https://host/3.png cannot be written" in err
    assert (box / "4.png").exists() and "3 pictures written, 0 kept" in out
    code, out, err = script("edit_batch", box / "tables/jobs.csv", *model)
    assert "0 pictures written, 3 kept" in out and " is kept, " not in out, out
    code, out, err = script("edit_batch", box / "tables/jobs.csv", *model, "--scale", 2)
    assert out.count("made with scale 5.0, not 2.0") == 3, out
    assert len((box / "tables/jobs.results.csv").read_text().splitlines()) == 5

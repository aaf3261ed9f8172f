"""scripts/inference_test_bench.py: every case of a benchmark gets its result."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ldm.cli import edit_benchmark
from ldm.data.bench.cocoee import COCOImageDataset
from ldm.util import UserError
from tests.evaluation.conftest import COUNT, run


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_every_case_has_a_result(place):
    ids, results = COCOImageDataset(place.bench).ids, place.results
    assert sorted(path.name for path in results.iterdir()) == sorted(f"{name}.png" for name in ids)
    assert len(ids) == COUNT and {Image.open(path).size for path in results.iterdir()} == {(128, 128)}
    made = json.loads((results.parent / "settings.json").read_text())
    assert made["scale"] == 5 and made["steps"] == 2 and len(made["sha256"]) == 64


def test_results_do_not_depend_on_batches_or_processes(place, tmp_path):
    """Two processes of torchrun with another batch size; then one process writes some missing results again."""
    words = place("inference_test_bench", "--outdir", tmp_path, "--batch_size", 3)
    done = run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words], place.root)
    assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "results").iterdir())
    assert len(paths) == COUNT
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert max(np.abs(pixels(path) - pixels(place.results / path.name)).max() for path in paths) <= 1
    for path in paths[:5]:
        path.unlink()
    done = run([sys.executable, *words], place.root)
    assert done.returncode == 0 and f"{COUNT - 5} of {COUNT} results are finished already" in done.stdout, done.stderr
    assert all(path.stat().st_mtime_ns == before[path] for path in paths[5:])
    assert max(np.abs(pixels(path) - pixels(place.results / path.name)).max() for path in paths) <= 1


@pytest.mark.parametrize(("more", "before", "words"), [
    (["--scale", 3], {}, "made with scale 5.0, not 3.0"),
    (["--best", 2], {}, "made with best None, not 2"),
    ([], {"lora": "x.safetensors"}, "made with lora x.safetensors, not None"),
    ([], {"cases": "0"}, "made with cases 0, not"),
    ([], {"config": "0"}, "made with config 0, not"),
])  # fmt: skip
def test_results_of_other_settings_are_not_mixed(more, before, words, here, script, tmp_path):
    settings = json.loads((here.results.parent / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps(settings | before))
    _, *command = here("inference_test_bench", "--outdir", tmp_path, *more)
    code, _, err = script("inference_test_bench", *command)
    assert code == 2 and words in err and not (tmp_path / "results").exists()


def test_a_damaged_case_does_not_keep_the_others(here, script, tmp_path, monkeypatch):
    """Damaged headers are reported before the model is loaded, a truncated file after all other edits."""
    bench = tmp_path / "bench"
    bench.mkdir()
    for folder in ("GT_3500", "Mask_bbox_3500", "Ref_3500"):
        (bench / folder).mkdir()
        for path in sorted((here.bench / folder).iterdir())[:3]:
            shutil.copy(path, bench / folder)
    first, *_ = sorted((bench / "Ref_3500").iterdir())
    content = first.read_bytes()
    first.write_bytes(b"no picture")
    _, *words = here("inference_test_bench", "--bench", bench, "--outdir", tmp_path / "out", "--best", 2)
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "1 of 3 cases cannot be edited" in err and not (tmp_path / "out").exists()
    first.write_bytes(content[:-100])
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "1 of 3 cases could not be edited" in err
    assert len(list((tmp_path / "out/results").iterdir())) == 2
    assert json.loads((tmp_path / "out/settings.json").read_text())["best"] == 2
    monkeypatch.setenv("RANK", "0")
    code, _, err = script("inference_test_bench", *words)
    assert code == 2 and "RANK and WORLD_SIZE" in err


@pytest.mark.parametrize("ids", [
    np.array(["../../x"]), np.array(["/abs"]), np.array(["a/b"]), np.array([""]), np.array([".."]), np.array([1, 2, 1]),
    np.array([1.5]), np.array([b"x"]), np.array([{}], dtype=object), None,
])  # fmt: skip
def test_ids_are_names_of_files(ids, tmp_path):
    if ids is None:
        (tmp_path / "id_list.npy").write_bytes(b"")
    else:
        np.save(tmp_path / "id_list.npy", ids)
    with pytest.raises(UserError, match=r"id_list\.npy cannot be read"):
        COCOImageDataset(tmp_path)


def test_what_changes_a_single_edit_is_no_flag_of_the_benchmark():
    known = set(vars(edit_benchmark.parser().parse_args([])))
    assert known >= {"scale", "preset", "ckpt", "best", "judge"}
    assert not known & {"control", "control_scale", "keep_layout", "mix", "background", "strength"}

"""The nodes of integrations/comfyui on plain tensors, loaded as ComfyUI loads them. It is not installed: Host stands in
for the three of its modules that they import."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ldm
from ldm.checkpoint.adapters import write_adapter
from ldm.checkpoint.load import load_model
from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.editing.regions import Region
from ldm.pipeline import PaintByExample
from ldm.training.adapters import current_adapter, inject_adapter
from ldm.util import UserError
from tests.conftest import ROOT

PACK = ROOT / "integrations/comfyui"
WORKFLOWS = sorted(PACK.glob("example_workflows/*.json"))
MINI = {"checkpoint": "miniature model", "precision": "auto", "lora": "none", "lora_scale": 1.0}
HOW = {"seed": 321, "steps": 3, "guidance": 5.0, "preset": "none"}
HOW |= {"background": "exact", "context": "auto", "grow": 0.0}


class Interrupted(Exception):
    """ComfyUI's is of this kind."""


class Host:
    """ComfyUI's folders, progress and interruption."""

    def __init__(self, folder: Path):
        self.folder, self.progress, self.interrupt_at, self.made_room = folder, [], None, 0
        for name in ("checkpoints", "loras"):
            (folder / name).mkdir()

    def modules(self) -> dict[str, ModuleType]:
        paths, management, utils, comfy = (ModuleType(name) for name in ("folder_paths", "m", "u", "comfy"))
        paths.get_filename_list = lambda kind: sorted(os.listdir(self.folder / kind))
        paths.get_full_path_or_raise = lambda kind, name: str(self.folder / kind / name)
        management.get_torch_device = lambda: torch.device("cpu")
        management.unload_all_models = lambda: setattr(self, "made_room", self.made_room + 1)
        management.throw_exception_if_processing_interrupted = self.throw
        utils.ProgressBar = lambda total: SimpleNamespace(update_absolute=lambda *now: self.progress.append(now))
        comfy.model_management, comfy.utils = management, utils
        return {"folder_paths": paths, "comfy": comfy, "comfy.model_management": management, "comfy.utils": utils}

    def throw(self) -> None:
        if self.interrupt_at is not None and len(self.progress) >= self.interrupt_at:
            raise Interrupted


def load_pack(folder: Path) -> ModuleType:
    """As ComfyUI does, from a folder in custom_nodes."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Host:
    return Host(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pack(host, tmp_path_factory):
    """The pack, linked into custom_nodes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in host.modules().items():
            patch.setitem(sys.modules, name, module)
        link = tmp_path_factory.mktemp("custom_nodes") / "paint-by-example"
        link.symlink_to(PACK)
        yield load_pack(link)


@pytest.fixture(autouse=True)
def _fresh(host):
    host.progress.clear()
    host.interrupt_at = None


@pytest.fixture
def run(pack):
    """`run("PaintByExampleEdit", ...)` calls a node as ComfyUI does, in inference mode -> its outputs."""

    def call(name: str, **values):
        node = pack.NODE_CLASS_MAPPINGS[name]
        with torch.inference_mode():
            outputs = getattr(node(), node.FUNCTION)(**values)
        assert len(outputs) == len(node.RETURN_TYPES)
        return outputs

    return call


@pytest.fixture
def model(run):
    return run("PaintByExampleLoadModel", **MINI)[0]


def case(kind: str, number: int = 12) -> Path:
    folder = {"GT": "GT_3500", "mask": "Mask_bbox_3500", "ref": "Ref_3500"}[kind]
    return ROOT / f"examples/mini/{folder}/{number:012}_{kind}.png"


SIDE = Image.open(case("GT")).width  # of the miniature's square pictures


def load_image(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What ComfyUI's Load Image gives: (1,H,W,3), and 1 - alpha or, without it, 64 x 64 zeros."""
    picture = Image.open(path)
    image = torch.from_numpy(np.array(picture.convert("RGB")).astype(np.float32) / 255.0)[None]
    if "A" not in picture.getbands():
        return image, torch.zeros(1, 64, 64)
    return image, 1 - torch.from_numpy(np.array(picture.getchannel("A")).astype(np.float32) / 255.0)[None]


def load_mask(path: Path) -> torch.Tensor:
    """What its Load Image (as Mask) gives, of the red channel: (1,H,W)."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGBA").getchannel("R")).astype(np.float32) / 255.0)[None]


def saved(image: torch.Tensor) -> list[np.ndarray]:
    """The pixels that its Save Image writes."""
    return [np.clip(255.0 * each.numpy(), 0, 255).astype(np.uint8) for each in image]


def pictures(number: int = 12) -> dict[str, torch.Tensor]:
    return {
        "image": load_image(case("GT", number))[0],
        "mask": load_mask(case("mask", number)),
        "example": load_image(case("ref", number))[0],
    }


# ------------------------------------------------------------------------------------------------ the same pixels


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        ({}, ["--ddim_steps", 20]),
        ({"preset": "fast", "guidance": 3.0}, ["--preset", "fast", "--scale", 3]),
        (
            {"steps": 4, "background": "feather", "context": "1.5", "grow": 2.0},
            ["--ddim_steps", 4, "--background", "feather", "--context", 1.5, "--grow", 2],
        ),
        ({"preset": "draft", "background": "none", "context": "photo"},
         ["--preset", "draft", "--background", "none", "--context", "photo"]),
    ],
)  # fmt: skip
def test_an_edit_is_the_commands_edit(run, model, script, tmp_path, changed, flags):
    (image,) = run("PaintByExampleEdit", model=model, **pictures(), **HOW | {"steps": 20} | changed)
    code, _, err = script(
        "inference",
        *("--image_path", case("GT"), "--mask_path", case("mask"), "--reference_path", case("ref"), "--seed", 321),
        *("--config", MINI_CONFIG, "--ckpt", MINI_CKPT, "--device", "cpu", "--outdir", tmp_path),
        *flags,
    )
    assert code == 0, err
    written = np.asarray(Image.open(tmp_path / "results/000000000012_GT_321.png"))
    assert np.array_equal(saved(image)[0], written)
    assert not np.array_equal(written, np.asarray(Image.open(case("GT"))))


@pytest.mark.integration
def test_several_regions_are_the_pipelines(run, model):
    x, y, width, height = (SIDE * share // 16 for share in (12, 4, 4, 7))
    box = run("PaintByExampleBoxMask", image=pictures()["image"], x=x, y=y, width=width, height=height)[0]
    assert box.shape == (1, SIDE, SIDE) and box.sum() == width * height and box[0, y : y + height, x : x + width].all()
    (first,) = run("PaintByExampleAddRegion", mask=pictures()["mask"], example=pictures()["example"])
    (both,) = run("PaintByExampleAddRegion", mask=box, example=pictures(1)["example"], regions=first)
    assert (len(first), len(both)) == (1, 2)
    (image,) = run("PaintByExampleEditRegions", model=model, image=pictures()["image"], regions=both, **HOW)

    expected = model(
        Image.open(case("GT")),
        regions=[Region(mask=case("mask")), Region(box=(x, y, x + width, y + height))],
        references=[Image.open(case("ref")), Image.open(case("ref", 1))],
        steps=3,
        progress=False,
    )
    assert np.array_equal(saved(image)[0], np.asarray(expected))


@pytest.mark.integration
def test_the_best_of_several_seeds_is_the_pipelines(run, model, host):
    (image,) = run("PaintByExampleEdit", model=model, **pictures(), **HOW, best=2, best_preset="draft")
    files = [Image.open(case(kind)) for kind in ("GT", "mask", "ref")]
    expected = model(*files, steps=3, best=2, progress=False)
    assert np.array_equal(saved(image)[0], np.asarray(expected))
    assert [done for done, total in host.progress if done == total] == [12, 3]  # two drafts of 6 steps, then the edit


@pytest.mark.integration
def test_batches_with_one_example_or_as_many(run, model):
    """Every entry is the edit of its own image, mask and example, with a seed of its own."""
    each = [pictures(number) for number in (1, 2, 3)]
    for given in each:
        given["example"] = given["example"][:, :48, :48]  # those of a batch have one size
    many = {name: torch.cat([given[name] for given in each]) for name in pictures()}
    (image,) = run("PaintByExampleEdit", model=model, **many, **HOW)
    assert image.shape == (3, SIDE, SIDE, 3) and image.dtype == torch.float32
    for i, given in enumerate(each):
        (one,) = run("PaintByExampleEdit", model=model, **given, **HOW | {"seed": 321 + i})
        assert (image[i] - one[0]).abs().max() <= 1 / 255 + 1e-6  # the sum of a product depends on the batch's size
    (same,) = run("PaintByExampleEdit", model=model, **many | {"example": each[0]["example"]}, **HOW)
    assert torch.equal(same[0], image[0]) and not torch.equal(same[1], image[1])
    repeated = each[0]["image"].expand(2, -1, -1, -1)
    (variations,) = run("PaintByExampleEdit", model=model, **each[0] | {"image": repeated}, **HOW)
    assert variations.shape[0] == 2 and not torch.equal(variations[0], variations[1])
    with pytest.raises(UserError, match=r"batches of 2 and 3 pictures do not go together: give"):
        run("PaintByExampleEdit", model=model, **many | {"mask": many["mask"][:2]}, **HOW)


@pytest.mark.integration
def test_transparent_examples_and_masks_of_other_forms(run, model):
    """A fourth channel is opacity, as of Join Image with Alpha; a mask may lack the batch, or be smaller."""
    given = pictures()
    (plain,) = run("PaintByExampleEdit", model=model, **given, **HOW)
    opaque = torch.cat([given["example"], torch.ones_like(given["example"][..., :1])], dim=-1)
    small = given["mask"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    brighter = {"image": torch.where(given["image"] == given["image"].max(), given["image"] + 1e-7, given["image"])}
    for changed in ({"mask": given["mask"][0]}, {"example": opaque}, {"mask": small.double()}, brighter):
        (image,) = run("PaintByExampleEdit", model=model, **given | changed, **HOW)
        assert torch.equal(image, plain), changed.keys()
    half = opaque.clone()
    half[:, :, 32:, 3] = 0
    (image,) = run("PaintByExampleEdit", model=model, **given | {"example": half}, **HOW)
    cut = Image.open(case("ref")).convert("RGBA")
    opacity = Image.new("L", cut.size)
    opacity.paste(255, (0, 0, 32, cut.height))
    cut.putalpha(opacity)
    expected = model(Image.open(case("GT")), Image.open(case("mask")), cut, steps=3, progress=False)
    assert np.array_equal(saved(image)[0], np.asarray(expected))


# ------------------------------------------------------------------------------------------------ in ComfyUI


def workflow_values(pack, node: dict) -> dict:
    """A node's widgets by their names; after a seed, the interface keeps what it does with it."""
    inputs = pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
    widgets = [
        (name, *spec[:2])
        for group in ("required", "optional")
        for name, spec in inputs.get(group, {}).items()
        if isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")
    ]
    values, given = list(node["widgets_values"]), {}
    for name, kind, options in widgets:
        value = given[name] = values.pop(0)
        if isinstance(kind, list):
            assert value in kind, (name, value)
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= value <= options["max"], name
        if name == "seed":
            assert values.pop(0) in ("fixed", "randomize")
    assert not values
    return given


@pytest.mark.integration
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_workflow_runs(pack, run, path):
    """From its values, with ComfyUI's own nodes as above, on the pictures that the README tells to copy."""
    flow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in sorted(flow["nodes"], key=lambda node: node["order"])}
    links = {link: (source, slot, target, place, kind) for link, source, slot, target, place, kind in flow["links"]}
    outputs: dict[int, tuple] = {}
    saves = []
    for number, node in nodes.items():
        linked = {}
        for place, each in enumerate(node["inputs"]):
            source, slot, target, target_place, kind = links[each["link"]]
            assert (target, target_place, kind) == (number, place, each["type"])
            assert (
                nodes[source]["outputs"][slot]["type"] == kind
                and each["link"] in nodes[source]["outputs"][slot]["links"]
            )
            linked[each["name"]] = outputs[source][slot]
        if node["type"] in ("LoadImage", "LoadImageMask"):
            (file,) = ROOT.glob(f"examples/mini/*/{node['widgets_values'][0]}")
            outputs[number] = load_image(file) if node["type"] == "LoadImage" else (load_mask(file),)
        elif node["type"] == "SaveImage":
            saves += saved(linked["images"])
        else:
            types = pack.NODE_CLASS_MAPPINGS[node["type"]].RETURN_TYPES
            assert [each["type"] for each in node["outputs"]] == list(types)
            outputs[number] = run(node["type"], **linked, **workflow_values(pack, node))
    (picture,) = saves
    assert picture.shape == (SIDE, SIDE, 3) and (picture != np.asarray(Image.open(case("GT")))).any()


def test_every_node_is_as_comfyui_wants_it(pack):
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text())["nodes"]} >= set(
        pack.NODE_CLASS_MAPPINGS
    )
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        assert name.startswith("PaintByExample") and node.CATEGORY and node.DESCRIPTION
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        names = [each for group in inputs.values() for each in group]
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters.values()
        assert (
            any(each.kind is each.VAR_KEYWORD for each in parameters) or [each.name for each in parameters][1:] == names
        )
        for group in inputs.values():
            for kind, *options in group.values():
                default = options[0].get("default") if options else None
                assert default is None or not isinstance(kind, list) or default in kind


@pytest.mark.integration
def test_progress_and_interruption(host, run, model):
    many = {name: torch.cat([each] * 6) for name, each in pictures().items()}  # two batches, of 4 and 2
    (first,) = run("PaintByExampleAddRegion", mask=many["mask"], example=many["example"])
    (both,) = run("PaintByExampleAddRegion", mask=many["mask"], example=many["example"], regions=first)
    run("PaintByExampleEditRegions", model=model, image=many["image"], regions=both, **HOW)
    done, totals = zip(*host.progress, strict=True)
    assert set(totals) == {6 * 2 * 3} and done[-1] == totals[-1]
    assert list(done) == sorted(done) and len(done) == 2 * 2 * 3

    host.progress.clear()
    host.interrupt_at = 2
    with pytest.raises(Interrupted):
        run("PaintByExampleEdit", model=model, **pictures(), **HOW)
    assert len(host.progress) == 2
    host.interrupt_at = None
    (image,) = run("PaintByExampleEdit", model=model, **pictures(), **HOW)
    assert image.shape == (1, SIDE, SIDE, 3)


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.integration
def test_a_model_stays_loaded_until_another_is_or_its_file_changes(host, pack, run, model):
    changed = pack.NODE_CLASS_MAPPINGS["PaintByExampleLoadModel"].IS_CHANGED
    before = host.made_room
    assert run("PaintByExampleLoadModel", **MINI)[0] is model and host.made_room == before
    shutil.copy(MINI_CKPT, host.folder / "checkpoints/mine.safetensors")
    mine = MINI | {"checkpoint": "mine.safetensors", "config": str(MINI_CONFIG)}
    lists = pack.NODE_CLASS_MAPPINGS["PaintByExampleLoadModel"].INPUT_TYPES()["required"]
    assert lists["checkpoint"][0] == ["released model", "miniature model", "mine.safetensors"]
    (other,) = run("PaintByExampleLoadModel", **mine)
    assert other is not model and run("PaintByExampleLoadModel", **mine)[0] is other and host.made_room == before + 1
    mark = changed(**mine)
    assert mark == changed(**mine) != changed(**mine | {"precision": "full"})
    os.utime(host.folder / "checkpoints/mine.safetensors", (1, 1))
    assert changed(**mine) != mark and run("PaintByExampleLoadModel", **mine)[0] is not other


@pytest.mark.integration
def test_lora_precision_and_offload_reach_the_model(host, run, model):
    base = load_model(MINI_CONFIG, MINI_CKPT)
    inject_adapter(
        base, "lora", yaml.safe_load((ROOT / "configs/mini/finetune_lora.yaml").read_text())["model"]["lora"]
    )
    adapter = current_adapter(base)
    for name, tensor in adapter.tensors.items():
        if name.endswith("lora_B.weight"):
            tensor.normal_(std=0.05)
    write_adapter(adapter, host.folder / "loras/mine.safetensors")
    (plain,) = run("PaintByExampleEdit", model=model, **pictures(), **HOW)
    lora = {"lora": "mine.safetensors", "lora_scale": 0.5}
    half = {"precision": "bf16", "offload": True}
    for changed, options in ((lora, lora | {"lora": host.folder / "loras/mine.safetensors"}), (half, half)):
        (changed_model,) = run("PaintByExampleLoadModel", **MINI | changed)
        (image,) = run("PaintByExampleEdit", model=changed_model, **pictures(), **HOW)
        expected = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu", **options)
        files = (Image.open(case(kind)) for kind in ("GT", "mask", "ref"))
        assert np.array_equal(saved(image)[0], np.asarray(expected(*files, steps=3, progress=False)))
        assert not torch.equal(image, plain)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": torch.zeros(1, SIDE, SIDE)}, "the mask has nothing to paint: draw it in the mask editor"),
        ({"mask": torch.ones(1, SIDE, 40)}, f"mask is 40 x {SIDE} but the image is {SIDE} x {SIDE}: use a mask with"),
        ({"mask": torch.full((1, SIDE, SIDE), 0.4)}, "the mask has nothing to paint"),
        ({"context": "wide"}, "context 'wide' is not a number: use for example 2.5, or auto, or photo"),
        ({"context": "nan"}, "context nan is out of range"),
        ({"grow": -100.0}, "the mask has nothing left to paint"),
        ({"seed": 2**63}, "seed 9223372036854775808 is out of range"),
    ],
)
def test_mistakes_are_one_sentence(run, model, changed, message):
    with pytest.raises(UserError, match=message):
        run("PaintByExampleEdit", model=model, **pictures() | HOW | changed)


def test_a_box_outside_of_the_image(run):
    with pytest.raises(UserError, match=f"box {SIDE},0,{SIDE + 10},10 contains nothing of the photo"):
        run("PaintByExampleBoxMask", image=pictures()["image"], x=SIDE, y=0, width=10, height=10)


# ------------------------------------------------------------------------------------------------ the folder


def import_in_a_process(name: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Import the pack by its name, outside of ComfyUI, with `path` and without the `ldm` that is installed here."""
    code = "import importlib, importlib.util, os, sys\n"
    code += "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in getattr(each, '__module__', '')]\n"
    code += "sys.path[:] = [each for each in sys.path if not os.path.isdir(os.path.join(each, 'ldm'))]\n"
    code += f"sys.path[:0] = {[str(each) for each in path]}\n"
    code += f"pack = importlib.import_module({name!r})\n"
    code += "print(pack.models.checkpoints(), importlib.util.find_spec('scripts'))"
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run([sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True)


@pytest.mark.integration
def test_linked_or_copied_without_comfyui(tmp_path):
    """A link finds the checkout's package and exposes nothing else of it; a copy needs the package installed."""
    (tmp_path / "linked").symlink_to(PACK)
    shutil.copytree(PACK, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("site", "other/ldm"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "site/ldm").symlink_to(ROOT / "ldm")
    (tmp_path / "other/ldm/__init__.py").touch()
    for done in (
        import_in_a_process("linked", tmp_path),
        import_in_a_process("linked", tmp_path, tmp_path / "other"),  # another `ldm` could be found, too
        import_in_a_process("copied", tmp_path, tmp_path / "site"),
    ):
        assert done.returncode == 0, done.stderr
        assert done.stdout == "['released model', 'miniature model'] None\n"
    missing = import_in_a_process("copied", tmp_path)
    assert missing.returncode and "ImportError: the package paint-by-example is missing: link" in missing.stderr
    taken = import_in_a_process("copied", tmp_path, tmp_path / "other")
    assert taken.returncode and "has the name of this pack's package, ldm: disable" in taken.stderr


def test_the_folder_says_the_same_as_the_project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later have it")
    project, pack = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, PACK))
    needed = [each for each in project["project"]["dependencies"] if not each.startswith("torch")]
    assert pack["project"]["dependencies"] == needed == (PACK / "requirements.txt").read_text().split()
    assert pack["project"]["version"] == ldm.__version__ and "comfyui" not in pack["project"]["name"].lower()
    assert pack["tool"]["comfy"].keys() == {"PublisherId", "DisplayName", "Icon"}
    assert "Repository" in pack["project"]["urls"]
    assert (PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()

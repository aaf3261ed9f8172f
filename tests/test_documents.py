"""README and docs/: commands and snippets run, or stand in a list with the reason; links lead somewhere.

Commands that need much around them are run by the tests of their folder: the benchmark's by
tests/evaluation/conftest.py, the small world's tables by tests/miniworld/test_chain.py, the page's by
tests/web/test_command.py."""

import contextlib
import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ldm.checkpoint.load import read_checkpoint, write_checkpoint
from ldm.checkpoint.names import FIRST_CONV
from ldm.editing.metadata import save_with_settings
from ldm.methods.tokens import LearnedToken, write_token
from ldm.pipeline import PaintByExample
from tests.conftest import ROOT
from tests.documents import PAGES, blocks, commands, commands_of

README = (ROOT / "README.md").read_text()
RUN_ELSEWHERE = commands_of(
    *("scripts/create_square_gt_for_fid.py", "scripts/fit_quality_gmm.py"),
    *("scripts/inference_test_bench.py", "scripts/eval_fid_qs_clip.py"),
    *("scripts/mini_table.py", "scripts/demo.py", "scripts/prepare_latents.py"),
)
PRODUCTS = [c for c in commands() if "products" in c]  # run by tests/training/test_detail.py
NOT_RUN = {  # command or its beginning: why
    "make": "creates an environment of gigabytes, or takes hours; that its target exists is tested",
    "python3 -m venv": "what make does",
    "source .venv": "what make does",
    "pip install": "network, gigabytes",
    "conda": "needs conda, network, gigabytes",
    "curl": "needs a server; tests/web/test_iopaint.py sends these requests",
    "pre-commit": "needs pre-commit",
    "ln -s": "needs ComfyUI; tests/integrations/test_comfyui.py links the folder",
    "cp examples/mini/": "needs ComfyUI; tests/integrations/test_comfyui.py takes the pictures from where they are",
    "python scripts/measure_clicks.py": "a minute; tests/segmentation/test_objects.py measures the same on six scenes",
    "python scripts/measure_methods.py": "minutes; tests/methods/test_measuring.py measures two cases",
    "python scripts/measure_together.py": "minutes; tests/methods/test_measures.py measures the same on two cases",
    "python scripts/measure_control.py": "half an hour; tests/methods/test_measuring_control.py trains for a moment",
    "python scripts/inference.py --control": "needs a ControlNet; tests/methods/test_control.py makes one",
    "python scripts/edit_batch.py s3://": "needs a bucket; tests/batch/test_processes.py starts one",
    "torchrun --nproc_per_node 8 scripts/edit_batch.py": "the same",
    "srun": "needs SLURM",
    "python scripts/train_mini.py": "needs a GPU; tests/miniworld/test_train_mini.py rehearses it",
    "python scripts/editing_figures.py": "minutes; draws into docs/",
    "python main.py --base configs/mini/paint_by_example.yaml configs/mini/distill.yaml": "half an hour",
}
GPU = [c for c in commands_of("main.py") if "--gpus" in c]
DATA = re.compile(r"scripts/(read_bbox|show_samples|make_miniworld|benchmark_)|dataset/(mine|tryon)|mini-lora|/tiny\b")
DATA_COMMANDS = [  # from one's own pictures to one's own model, in their order
    c
    for c in commands()
    if c.startswith("python ") and DATA.search(c) and c not in [*GPU, *PRODUCTS] and "logs/mine" not in c
]
MODEL_COMMANDS = [
    c
    for c in commands()
    if c.startswith("python ")
    and c not in [*RUN_ELSEWHERE, *PRODUCTS, *GPU, *DATA_COMMANDS]
    and not c.startswith(tuple(NOT_RUN))
]
INSTALLED = [c for c in commands() if c.startswith("paint-by-example ")]
FILES = ("--input", "--a", "--b", "--c", "--ckpt", "scripts/convert_checkpoint.py")  # a checkpoint that is read follows


def test_every_command_is_run_or_has_a_reason():
    known = {*RUN_ELSEWHERE, *PRODUCTS, *GPU, *DATA_COMMANDS, *MODEL_COMMANDS, *INSTALLED}
    left = [c for c in commands() if c not in known and not c.startswith(tuple(NOT_RUN))]
    assert not left, left
    unused = [start for start in NOT_RUN if not any(c.startswith(start) for c in commands())]
    assert not unused, unused
    assert len(MODEL_COMMANDS) > 10 and len(DATA_COMMANDS) > 8


def test_the_readme_is_short_and_opens_with_the_map():
    import ldm

    assert len(README.splitlines()) <= 200
    lines = [line.strip() for line in ldm.__doc__.splitlines()[2:]]
    for text in (README[: README.index("## ")], (ROOT / "docs/architecture.md").read_text()):
        assert [line.strip() for line in text.splitlines() if line.strip() in lines] == lines


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for c in commands() if c.startswith("make ") for word in c.split()[1:] if "=" not in word}
    assert {"demo", "test", "docs", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


# ------------------------------------------------------------------------------------------------ links and names


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / name for name in ("examples/README.md", "dataset/README.md", "pretrained_models/mini.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"
        if page.parent == ROOT / "docs":
            assert path.parent == page.parent, f"{page.name}: {target} is outside the site"


def test_every_page_is_in_the_sites_menu():
    menu = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M)
    assert sorted(menu) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_files_that_pages_name_exist():
    written = re.compile(r"<|\*|\.\.\.|scripts/\S*\{|^(results|logs|checkpoints|dataset/mine|test_bench)")
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for path in re.findall(r"`((?:ldm|configs|scripts|tests|examples|docs)/[^`\s]*)`", text):
            assert written.search(path) or (ROOT / path).exists(), f"{page.name}: {path}"


def named(dotted: str) -> object:
    """What a module path and names in it stand for. Raises AttributeError or ImportError."""
    words = dotted.split(".")
    for count in range(len(words), 0, -1):
        try:
            found = importlib.import_module(".".join(words[:count]))
        except ModuleNotFoundError as error:
            if not dotted.startswith(str(error.name)):
                raise
            continue
        for word in words[count:]:
            found = getattr(found, word)
        return found
    raise ImportError(dotted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_pages_can_be_imported(page):
    names = set(re.findall(r"`(ldm(?:\.\w+)+)[`(]", page.read_text())) | set(
        re.findall(r"^::: (\S+)$", page.read_text(), flags=re.M)
    )
    for name in names:
        named(name)
    if page.stem == "method":
        assert len(names) > 40
    with pytest.raises((ImportError, AttributeError)):
        named("ldm.conventions.no_such_name")


def test_the_citation_file_and_the_docs_extra():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "2211.13227" in str(citation["preferred-citation"]) and citation["license"] == "MIT"
    makefile = (ROOT / "Makefile").read_text()
    (line,) = re.findall(r"^DOCS_TOOLS := (.*)$", makefile, flags=re.M)
    declared = (ROOT / "pyproject.toml").read_text()
    for tool in line.replace("'", "").split():
        assert f'"{tool}' in declared, f"{tool} is not in the extra named docs"


# ------------------------------------------------------------------------------------------------ commands


def workplace(folder: Path) -> None:
    for name in ("ldm", "scripts", "configs", "examples", "pretrained_models", "main.py"):
        (folder / name).symlink_to(ROOT / name)


def stand_in(place: Path, tiny: Path) -> None:
    """The tiny model at `place`; with 4 input channels where a Stable Diffusion model is meant."""
    tensors = read_checkpoint(tiny)
    if "sd-v1-4" in place.name or "fine-tuned" in place.name:
        tensors[FIRST_CONV] = tensors[FIRST_CONV][:, :4].contiguous()
    write_checkpoint(tensors, place)


def with_tiny_model(words: list[str], tiny: Path, lora: Path) -> list[str]:
    """A command's words with small numbers, and the tiny model in the place of the real one, not of the miniature."""
    if "pretrained_models/mini_detail.safetensors" in words:
        return [*words, "--ddim_steps", "2", "--device", "cpu"]
    small = {
        "scripts/inference.py": ["--ddim_steps", "2", "--H", "64", "--W", "64", "--device", "cpu"],
        "scripts/benchmark.py": ["--size", "64", "--rounds", "1", "--precision", "full"],
        "scripts/edit_batch.py": ["--ckpt", str(tiny), "--ddim_steps", "2", "--device", "cpu"],
        "scripts/which_reference.py": ["--ckpt", str(tiny), "--device", "cpu"],
        "scripts/learn_object.py": [
            "--ckpt",
            str(tiny),
            *["--learning_steps", "1", "--every", "0", "--steps", "2", "--device", "cpu"],
        ],
    }
    more = list(small.get(words[1], []))
    if "--preset" in words:
        more = more[2:]
    words = ["configs/tiny.yaml" if word == "configs/v1.yaml" else word for word in words]
    words = [str(lora) if word == "logs/mine/checkpoints/lora.safetensors" else word for word in words]
    takes_config = words[1] not in ("scripts/random_checkpoint.py", "examples/minimal_edit.py")
    if takes_config and not {"--config", "configs/tiny.yaml"} & set(words):
        more += ["--config", "configs/tiny.yaml"]
    if words[1] == "scripts/inference.py" and "--ckpt" not in words:
        more += ["--ckpt", str(tiny)]
    return [*words, *more]


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory) -> Path:
    """An adapter for the tiny model."""
    from ldm.checkpoint.adapters import write_adapter
    from ldm.checkpoint.load import load_model
    from ldm.training.adapters import current_adapter, inject_adapter

    model = load_model(ROOT / "configs/tiny.yaml", tiny)
    inject_adapter(model, "lora", yaml.safe_load((ROOT / "configs/finetune_lora.yaml").read_text())["model"]["lora"])
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    write_adapter(current_adapter(model), path)
    return path


@pytest.mark.parametrize("command", MODEL_COMMANDS, ids=lambda c: c[:70])
def test_every_command_of_a_model_runs(command, tiny, lora, script, tmp_path, monkeypatch):
    """As printed, in a copy of the folders it names, with the tiny model in the place of the real files."""
    for name in ("ldm", "scripts", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = with_tiny_model(command.split(), tiny, lora)
    for name in [b for a, b in pairwise(command.split()) if a in FILES]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        stand_in(tmp_path / name, tiny)
    monkeypatch.chdir(tmp_path)
    if "--from" in words:
        files = {"image": "examples/image/example_2.jpg", "references": [["examples/reference/example_2.jpg"]]}
        (tmp_path / "results").mkdir()
        kept = files | {"regions": [{"box": [150, 20, 400, 300]}]}
        save_with_settings(Image.new("RGB", (8, 8)), words[words.index("--from") + 1], kept)
    if "results/mine.safetensors" in words and words[1] == "scripts/inference.py":
        token = torch.zeros(1, 40)
        learned = LearnedToken(token, torch.zeros(8, 8, 3, dtype=torch.uint8), token, token)
        write_token(learned, tmp_path / "results/mine.safetensors")
    if words[1] == "scripts/edit_batch.py":
        (table,) = (block for block in blocks("csv") if block.startswith("image,"))
        (tmp_path / "jobs.csv").write_text(table)
    if words[1].startswith("examples/"):
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = script(Path(words[1]).stem, *words[2:])
    assert code == 0, err
    if words[1] == "scripts/edit_batch.py":
        assert "2 pictures written" in out and (tmp_path / "results/batch/2.png").exists()


def test_own_pictures_to_own_model(script, tmp_path, monkeypatch):
    """The pages' commands in their order, on six pictures where the photos are, with few steps and small numbers."""
    workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 90, "height": 60} for i in range(6)]
    for image in images:
        Image.new("RGB", (90, 60), "orange").save(tmp_path / "photos" / image["file_name"])
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [20, 10, 40, 30]} for i in range(6)]
    instances = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "orange"}]}
    (tmp_path / "photos/instances.json").write_text(json.dumps(instances))
    rows = "".join(f"{image['file_name']},20,10,60,40\n" for image in images)
    (tmp_path / "photos/boxes.csv").write_text(rows)
    (people,) = (block for block in blocks("csv") if "people/" in block)
    for name in set(re.findall(r"\w+/\w+\.jpg", people)):
        (tmp_path / "shop" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 200) if "people" in name else (90, 120), "orange").save(tmp_path / "shop" / name)
    (tmp_path / "shop/people.csv").write_text(people)
    small = {
        "scripts/benchmark_data.py": "--pictures=32 --rows=3000 --samples=2 --entries=100 --folder=.",
        "scripts/benchmark_training.py": "--steps=1",
        "scripts/make_miniworld.py": "--train=8 --validation=2 --test=2 --pretraining=2 --cases=2 --real=2",
        "scripts/inference.py": "--ddim_steps=2 --H=64 --W=64 --device=cpu",
        "main.py": "data.params.num_workers=0 data.params.batch_size=2 lightning.images.steps=1 --max_steps=2",
    }
    seen = set()
    for command in DATA_COMMANDS:
        words = command.split()
        if "--memory" in words:  # the estimate of the full size takes a minute
            words = ["configs/tiny.yaml" if word == "configs/v1.yaml" else word for word in words]
        code, _, err = script(Path(words[1]).stem, *words[2:], *small.get(words[1], "").split())
        assert code == 0, f"{command}\n{err}"
        seen.add(words[1])
    assert seen >= {*small, "scripts/read_bbox.py", "scripts/show_samples.py", "scripts/convert_checkpoint.py"}
    assert Image.open(tmp_path / "results/samples.png").size == (5 * 258 - 2, 8 * 274 - 2)
    assert Image.open(tmp_path / "results/pairs.png").size == (6 * 258 - 2, 8 * 274 - 2)
    assert (tmp_path / "results/example_1_321.png").exists()
    assert sorted(path.name for path in (tmp_path / "dataset/mine/bbox").glob("[!.]*")) == [
        *("problems.csv", "train.parquet", "validation.parquet")
    ]


@pytest.mark.parametrize("command", GPU, ids=lambda c: c[-40:])
def test_commands_for_gpus_are_understood(command, script, monkeypatch):
    """Where there is no GPU they end in the sentence that says so."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(ROOT)
    code, _, err = script(Path(command.split()[1]).stem, *command.split()[2:])
    assert code == 2 and "PyTorch finds no GPU" in err


@pytest.mark.parametrize("command", INSTALLED)
def test_the_installed_command(command, capsys):
    from ldm.cli.main import main

    with contextlib.suppress(SystemExit):  # argparse's, after its help
        main(command.split()[1:])
    assert "edit" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ snippets

SNIPPETS_ELSEWHERE = {  # opening: the test that runs it
    "from diffusers import DiffusionPipeline": "tests/integrations/test_diffusers_pipeline.py",
    "from gradio_client": "tests/web/test_call.py",
}


def test_snippets_that_others_run_are_there():
    for opening, test in SNIPPETS_ELSEWHERE.items():
        assert sum(block.startswith(opening) for block in blocks("python")) == 1, opening
        assert opening in (ROOT / test).read_text(), test


def snippets_of(page: Path) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    return [snippet for snippet in found if not snippet.startswith(tuple(SNIPPETS_ELSEWHERE))]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets_of(page)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tiny, tmp_path, monkeypatch):
    """A page's snippets one after the other, as printed, with the tiny model and few steps."""
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PaintByExample, "load", partial(PaintByExample.load, "configs/tiny.yaml", tiny, device="cpu"))
    call = PaintByExample.__call__

    def short(self, *args, **kwargs):
        steps = {} if "preset" in kwargs else {"steps": 1}
        return call(self, *args, **kwargs | steps | {"progress": False, "height": 64, "width": 64})

    monkeypatch.setattr(PaintByExample, "__call__", short)
    names: dict = {}
    for snippet in snippets_of(page):
        snippet = snippet.replace("configs/v1.yaml", "configs/tiny.yaml").replace("S=50", "S=1")
        snippet = snippet.replace("checkpoints/model.ckpt", str(tiny))
        exec(compile(snippet, page.name, "exec"), names)
    if page.stem == "README":
        assert Image.open(tmp_path / "result.png").size == names["image"].size
    if page.stem == "editing":
        edits = [*names["layouts"], names["both"], *names["many"], names["boxed"], names["two"]]
        assert {edit.size for edit in edits} == {names["image"].size}


@pytest.mark.integration
def test_the_minimal_edit_is_the_pipelines(monkeypatch):
    """examples/minimal_edit.py gives to the bit what the pipeline gives with the plain networks."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    from minimal_edit import edit as minimal

    image, mask, reference = (
        Image.open(ROOT / f"examples/mini/{file}").convert(mode)
        for file, mode in (
            ("GT_3500/000000000012_GT.png", "RGB"),
            ("Mask_bbox_3500/000000000012_mask.png", "L"),
            ("Ref_3500/000000000012_ref.png", "RGB"),
        )
    )
    weights = ROOT / "pretrained_models/mini.safetensors"
    edit = PaintByExample.load(ROOT / "configs/mini/paint_by_example.yaml", weights, device="cpu", fast=False)
    how = {"scale": 5.0, "steps": 4, "seed": 321}
    mine = minimal(edit.model, image, mask, reference, **how)
    assert minimal(edit.model, image, mask, reference, **how | {"seed": 1}).tobytes() != mine.tobytes()
    whole = {"context": "photo", "background": "none", "progress": False}
    assert edit(image, mask, reference, **how, **whole).tobytes() == mine.tobytes()


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra named docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site/api.html").read_text()
    assert len(api) > 100_000 and "ldm.pipeline.PaintByExample.__call__" in api


def test_a_broken_link_fails_the_site(tmp_path):
    """By the command of `make docs`."""
    pytest.importorskip("mkdocs", reason="needs the extra named docs")
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line)
    flags = shlex.split(line.split("#")[0].partition(" -m ")[2])
    assert flags == ["mkdocs", "build"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A page\n\n[a link](nowhere.md)\n")
    validation = (ROOT / "mkdocs.yml").read_text().partition("validation:")[2].partition("\n\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: A site\nstrict: true\nvalidation:{validation}\n")
    done = subprocess.run([sys.executable, "-m", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "nowhere.md" in done.stderr and "strict mode" in done.stdout

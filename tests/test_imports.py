"""Imports point one way: each module of ldm may use those on its own line of the order or on lines before it."""

import ast
from pathlib import Path

from tests.conftest import ROOT

ORDER = [
    ["ldm.util", "ldm.conventions"],
    [
        "ldm.images",
        "ldm.lr_scheduler",
        "ldm.models.diffusion.schedule",
        "ldm.models.diffusion.draws",
        "ldm.fast.offload",
        "ldm.checkpoint.files",
    ],
    [
        "ldm.editing.background",
        "ldm.editing.references",
        "ldm.editing.metadata",
        "ldm.editing.safety",
        "ldm.editing.watermark",
    ],
    ["ldm.editing.regions", "ldm.editing.window"],
    ["ldm.checkpoint.diffusers"],
    ["ldm.checkpoint", "ldm.modules", "ldm.checkpoint.lora"],
    ["ldm.models.autoencoder", "ldm.editing.asymmetric_decoder", "ldm.models.base"],
    ["ldm.models.diffusion.presets", "ldm.models.diffusion.sampling", "ldm.models.diffusion.conditioning"],
    ["ldm.models.diffusion.denoiser", "ldm.editing.inputs", "ldm.editing.checks"],
    ["ldm.models.diffusion.ddim", "ldm.models.diffusion.plms", "ldm.fast.networks"],
    ["ldm.models.diffusion.ddpm", "ldm.models.first_stage", "ldm.miniworld.clip", "ldm.miniworld.oracle_training"],
    ["ldm.models.diffusion.prior", "ldm.models.diffusion.distill"],
    ["ldm.pipeline", "ldm.data", "ldm.evaluation", "ldm.cli.flags"],
    [
        "ldm.training",
        "ldm.batch.benchmark",
        "ldm.cli.edit_flags",
        "ldm.miniworld.table",
        "ldm.miniworld.presets",
        "ldm.batch.table",
    ],
    ["ldm.speed.contestants", "ldm.web"],
    ["ldm.batch.runner"],
    ["main", "scripts"],
]
SEPARATE = {  # see these and themselves, never models
    "ldm.data": {"ldm.util", "ldm.conventions", "ldm.images"},
    "ldm.evaluation": {
        *("ldm.util", "ldm.conventions", "ldm.images", "ldm.checkpoint.files"),
        *("ldm.data.bench.cocoee", "ldm.miniworld.crops", "ldm.miniworld.scene"),
        *("ldm.miniworld.oracle", "ldm.modules.encoders.clip"),
    },
}


def place(module: str) -> int | None:
    for i, line in enumerate(ORDER):
        if any(module == name or module.startswith(name + ".") for name in line):
            return i
    return None


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_one_way():
    wrong = []
    for path in [*ROOT.glob("ldm/**/*.py"), *ROOT.glob("scripts/*.py"), ROOT / "main.py"]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for used in imports(path):
            if not used.startswith(("ldm.", "main")):
                continue
            group = next((name for name in SEPARATE if module.startswith(name)), None)
            if group:
                allowed = used.startswith((group, *SEPARATE[group]))
            elif "." in module and path.name == "__init__.py":
                allowed = True
            else:
                assert place(module) is not None, f"{module} has no place in the order of tests/test_imports.py"
                allowed = place(used) is not None and place(used) <= place(module)
            if not allowed:
                wrong.append(f"{module} imports {used}")
    assert not wrong, wrong


def test_scripts_hold_no_logic_that_others_import():
    for path in [*ROOT.glob("ldm/**/*.py"), *ROOT.glob("scripts/*.py")]:
        assert not any(used.startswith("scripts") for used in imports(path)), path

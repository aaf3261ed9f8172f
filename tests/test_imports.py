"""Imports point one way: a module of ldm may use those of its own floor of the house and of the floors below it."""

import ast
from pathlib import Path

from tests.conftest import ROOT

GROUND = [
    "ldm.conventions",
    "ldm.util",
    "ldm.files",
    "ldm.images",
    "ldm.pictures.colour",
    "ldm.pictures.metadata",
    "ldm.pictures.seam",
    "ldm.storage",
    "ldm.tables",
    "ldm.lr_scheduler",
]
FLOORS = [
    GROUND,
    ["ldm.modules", "ldm.segmentation"],
    ["ldm.models"],
    ["ldm.fast"],
    ["ldm.checkpoint"],
    ["ldm.methods"],
    ["ldm.editing"],
    ["ldm.pipeline"],
    ["ldm.batch", "ldm.data", "ldm.evaluation"],
    ["ldm.training", "ldm.web", "ldm.miniworld", "ldm.speed", "ldm.cli"],
    ["main", "scripts", "integrations", "ldm.__main__"],
]
SEPARATE = {  # these see themselves and what is named here, never models
    "ldm.data": GROUND,
    "ldm.evaluation": [*GROUND, "ldm.data.bench", "ldm.checkpoint.files", "ldm.modules.encoders.clip"],
}


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def floor(module: str) -> int | None:
    return next((i for i, names in enumerate(FLOORS) if any(is_within(module, name) for name in names)), None)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_one_way():
    wrong = []
    doors = [*ROOT.glob("scripts/*.py"), *ROOT.glob("integrations/**/*.py"), ROOT / "main.py"]
    for path in [*ROOT.glob("ldm/**/*.py"), *doors]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for used in imports(path):
            if not (is_within(used, "ldm") or is_within(used, "main")) or used == "ldm":
                continue
            package = next((name for name in SEPARATE if is_within(module, name)), None)
            if package:
                allowed = any(is_within(used, name) for name in (package, *SEPARATE[package]))
            else:
                assert module == "ldm" or floor(module) is not None, f"{module} has no floor in tests/test_imports.py"
                allowed = floor(used) is not None and floor(used) <= floor(module)
            if not allowed:
                wrong.append(f"{module} imports {used}")
    assert not wrong, wrong


def test_the_ground_floor_is_small():
    assert len(list(ROOT.glob("ldm/*.py"))) <= 10


def test_scripts_and_integrations_hold_no_logic_that_others_import():
    for path in [*ROOT.glob("ldm/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("integrations/**/*.py")]:
        assert not any(used.startswith(("scripts", "integrations")) for used in imports(path)), path


def test_what_runs_in_another_program_imports_only_the_package():
    """A main.py of its own, for instance, is in the place of ours."""
    for path in ROOT.glob("integrations/**/*.py"):
        assert not any(is_within(used, name) for used in imports(path) for name in ("main", "tests")), path


def is_for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_without_the_neighbouring_methods_the_rest_works():
    """A module outside ldm/methods imports them, if at all, inside the function that needs them or for its types."""
    for path in [*ROOT.glob("ldm/**/*.py"), ROOT / "main.py"]:
        if (ROOT / "ldm/methods") in path.parents:
            continue
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or is_for_types(node)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            uses = any(is_within(name, "ldm.methods") for name in names)
            assert not uses or id(node) in inside, f"{path} cannot be imported without ldm/methods"

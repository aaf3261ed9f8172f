"""examples/paint_by_example.ipynb: its code cells run one after the other, in a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from ldm.checkpoint.adapters import read_adapter
from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples/paint_by_example.ipynb"
SHORT = {"SAMPLING_STEPS": 2, "TRAINING_STEPS": 2}


def script_of(cells: list[str]) -> str:
    """The cells as a script that saves the pictures at their ends and installs nothing."""
    code = "shown = []\n" + "\n".join(
        re.sub(r"^(row\(.*\))\Z", r"shown.append(\1)", cell, flags=re.M) for cell in cells
    )
    code += "\nfor i, picture in enumerate(shown):\n    picture.save(f'shown-{i}.png')\n"
    code, count = re.subn(r"^%pip install .*$", "", code, flags=re.M)
    assert count == 1
    for name, value in SHORT.items():
        code, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", code, flags=re.M)
        assert count == 1, name
    return code


@pytest.mark.integration
def test_the_notebook_runs(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", script_of(cells)]
    folder = tmp_path / "examples"
    folder.mkdir()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    widths = [Image.open(path).width for path in sorted(folder.glob("shown-*.png"))]
    assert widths == [count * 194 - 2 for count in (4, 5, 4, 6, 5, 5)]
    adapter = read_adapter(tmp_path / "results/notebook/run/checkpoints/lora.safetensors")
    assert any(tensor.any() for name, tensor in adapter.tensors.items() if name.endswith("lora_B.weight"))

"""The command that serves the page."""

import re
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.web.conftest import free_port

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    command
    for path in DOCUMENTS
    for command in re.findall(
        r"^(?:python scripts/demo\.py|paint-by-example web)\b.*$", path.read_text(), flags=re.MULTILINE
    )
]


@pytest.fixture
def options(tiny) -> list:
    """For a page with the tiny model."""
    return ["--config", ROOT / "configs/tiny.yaml", "--ckpt", tiny, "--device", "cpu"]


def test_the_documents_show_the_command():
    assert any({"--ckpt", "--listen", "--port"} <= set(command.split()) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_serve_the_page(command, options, script, tmp_path, monkeypatch):
    """As printed, except for the model and the port, and ended once the page is served."""
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: page.close())
    monkeypatch.chdir(tmp_path)
    words = command.split("#")[0].split()[2:]
    code, out, err = script("demo", *words, *options, "--port", free_port())
    assert code == 0 and "the page is at http://" in out, err


def test_a_port_in_use_is_an_error(options, script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = script("demo", *options, "--listen", "127.0.0.1", "--port", port)
    assert code == 2 and f"--port {port}: the server cannot start there" in err and "use another port" in err
    assert "Traceback" not in err


def test_without_gradio_the_error_says_how_to_install_it(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = script("demo")
    assert code == 2
    assert "the web page needs gradio: pip install 'paint-by-example[web]'" in err


def test_the_parser_loads_neither_gradio_nor_torch():
    code = "import sys; from ldm.cli.web import parser; parser(); print(sorted({'gradio', 'torch'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"

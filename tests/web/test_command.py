"""The command that serves the page."""

import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint.locate import MINI_CKPT, MINI_CONFIG
from ldm.pipeline import PaintByExample
from tests.conftest import ROOT
from tests.web.conftest import free_port

gradio = pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[web]'")

from gradio_client import Client, handle_file  # noqa: E402

from ldm.web.examples import examples_for  # noqa: E402

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


def test_the_miniature_offers_likeness_and_paints_as_ever_without(script, monkeypatch):
    """Unasked, the page's edit is the pipeline's without a detail path, to the bit."""
    case = examples_for(PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu"))[0]
    names, results = ("image", "mask", "reference"), {}

    def use(page):
        client = Client(page.local_url, verbose=False)
        files = dict(zip(names, map(handle_file, case), strict=True))
        for asked in (None, 0, 0.5, 1):
            path, settings = client.predict(**files, steps=2, seed=7, detail_scale=asked, api_name="/edit")
            results[asked] = np.asarray(Image.open(path)), settings
        page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", use)
    code, _, err = script(
        "demo", "--config", MINI_CONFIG, "--ckpt", MINI_CKPT, "--device", "cpu", "--port", free_port()
    )
    assert code == 0, err
    plain = PaintByExample.load(MINI_CONFIG, MINI_CKPT, "cpu")
    expected = plain(*map(Image.open, case), seed=7, steps=2, progress=False)
    for asked in (None, 0):
        picture, settings = results[asked]
        assert np.array_equal(picture, expected) and not {"detail", "detail_scale"} & set(settings)
    for asked in (0.5, 1):
        picture, settings = results[asked]
        assert not np.array_equal(picture, expected)
        assert (settings["detail"], settings["detail_scale"]) == ("mini_detail.safetensors", asked)


def test_a_port_in_use_is_an_error(options, script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = script("demo", *options, "--listen", "127.0.0.1", "--port", port)
    assert code == 2 and f"--port {port}: the server cannot start there" in err and "use another port" in err
    assert "Traceback" not in err


def test_a_port_that_cannot_be_is_refused_before_the_model_is_read(options, script):
    code, _, err = script("demo", *options, "--ckpt", "missing.safetensors", "--port", 99999)
    assert code == 2 and "--port 99999 is out of range" in err


def test_without_gradio_the_error_says_how_to_install_it(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = script("demo")
    assert code == 2
    assert "the web page needs gradio: pip install 'paint-by-example[web]'" in err


def test_the_parser_loads_neither_gradio_nor_torch():
    code = "import sys; from ldm.cli.web import parser; parser(); print(sorted({'gradio', 'torch'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"

"""What the page's tests share: a server in this process, and the command as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import NamedTuple

import pytest
from PIL import Image

from ldm.web.worker import EditWorker, ModelInfo
from tests.conftest import ROOT

FILES = [ROOT / "examples" / name for name in ("image/example_2.jpg", "mask/example_2.png", "reference/example_2.jpg")]
MODEL = ModelInfo(precision="full", checkpoint="tiny.safetensors")


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


class CountingPipeline:
    """The pipeline, counting the sampling steps it makes. Inside `paused_after_a_step()` it waits after each step until
    the block ends."""

    def __init__(self, edit):
        self.edit, self.steps = edit, 0
        self.running = threading.Event()
        self.running.set()

    @contextlib.contextmanager
    def paused_after_a_step(self):
        self.running.clear()
        try:
            yield
        finally:
            self.running.set()

    def __getattr__(self, name):
        return getattr(self.edit, name)

    def repaint(self, *args, callback, **kwargs):
        def count(step):
            self.steps += 1
            callback(step)
            assert self.running.wait(60)

        return self.edit.repaint(*args, callback=count, **kwargs)


@pytest.fixture(scope="module")
def worker(edit):
    """On the tiny model; `worker.edit.steps` counts its sampling steps."""
    worker = EditWorker(CountingPipeline(edit), MODEL, [Image.open(FILES[0])])
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def page(worker):
    from ldm.web.examples import Example
    from ldm.web.page import build

    return build(worker, [Example(*FILES)])


@pytest.fixture(scope="module")
def url(page, worker):
    from ldm.web.iopaint import IOPaint
    from ldm.web.page import serve

    yield serve(page, "127.0.0.1", free_port(), IOPaint(worker).routes())
    page.close()


@pytest.fixture(scope="module")
def submit(url, tmp_path_factory):
    """`submit(seed=1)`: the call /edit, of example 2 unless other files are given, as gradio_client's Job."""
    client = pytest.importorskip("gradio_client")
    caller = client.Client(url, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("got"))

    def call(image=FILES[0], mask=FILES[1], reference=FILES[2], **numbers):
        files = {"image": image, "mask": mask, "reference": reference}
        files = {name: client.handle_file(str(path)) for name, path in files.items()}
        return caller.submit(**files, **{"steps": 2, "seed": 321, **numbers}, api_name="/edit")

    return call


@pytest.fixture(scope="module")
def ask(submit):
    """`ask(seed=1)` -> (path of the result, settings)."""
    return lambda **options: submit(**options).result(timeout=60)


class Demo(NamedTuple):
    """scripts/demo.py as a process."""

    url: str
    pid: int


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The page with the miniature model in a process of its own, which SIGTERM ends quickly and without a traceback."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "scripts/demo.py", "--port", str(free_port()), "--device", "cpu"]
    command += ["--config", "configs/mini/paint_by_example.yaml", "--ckpt", "pretrained_models/mini.safetensors"]
    log = tmp_path_factory.mktemp("log") / "stderr"
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            address = re.search(r"http://\S+/", process.stdout.readline())
            assert address, log.read_text()
            yield Demo(address[0], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
    assert code == 143 and "Traceback" not in log.read_text(), log.read_text()

"""The released model from the hub."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ldm.checkpoint import locate
from ldm.util import UserError, UserNote
from tests.checkpoint.conftest import pickled
from tests.conftest import ROOT


class Hub(BaseHTTPRequestHandler):
    """The two requests of a download from the hub."""

    content = b""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if re.fullmatch(r"/Fantasy-Studio/Paint-by-Example/resolve/(main|0{40})/model\.ckpt", self.path):
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


def find(env, name="'hub'"):
    code = f"""
from ldm.cli.command import command
@command
def main():
    from ldm.checkpoint.locate import find_checkpoint
    from ldm.checkpoint import read_checkpoint
    print(len(read_checkpoint(find_checkpoint({name}))))
main()"""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.integration
def test_the_released_model_comes_from_the_hub(tensors, tmp_path):
    Hub.content = pickled({"state_dict": tensors}, tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = find(env)
    server.shutdown()
    assert done.stdout.strip() == str(len(tensors)), done.stderr
    # from now on without a network
    done = find(env | {"HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip() == str(len(tensors)), done.stderr


@pytest.mark.integration
def test_a_download_that_breaks_off_gets_one_sentence(tmp_path):
    class BreaksOff(Hub):
        content = bytes(1000)

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(self.content[:10])

    server = ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = find(env)
    server.shutdown()
    assert done.returncode == 2
    assert "could not be fetched from the hub" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.integration
@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline"),
        # slow, since the client tries again and again
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, id="unreachable", marks=pytest.mark.slow),
    ],
)
def test_offline_it_says_where_to_get_the_model_and_where_to_put_it(tmp_path, env):
    done = find({"HF_HOME": str(tmp_path)} | env)
    assert done.returncode == 2
    assert "resolve/main/model.ckpt" in done.stderr and "checkpoints/model.ckpt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_model_where_none_is_named(tmp_path, monkeypatch):
    """The released one if it is in checkpoints/ or in the hub's cache; else the miniature one, with a note. Nothing
    is downloaded unless it is asked for."""
    for name in ("DEFAULT_CKPT", "MINI_CKPT"):
        monkeypatch.setattr(locate, name, tmp_path / name)
    cached = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: cached[0] if cached else None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: "fetched")
    for given in ((), ("c.yaml", None)):
        with pytest.raises(UserError, match="DEFAULT_CKPT is missing: name a checkpoint with --ckpt; --ckpt hub downl"):
            locate.choose_model(*given)
    (tmp_path / "MINI_CKPT").touch()
    with pytest.warns(UserNote, match="using the miniature model"):
        assert locate.choose_model() == (locate.MINI_CONFIG, tmp_path / "MINI_CKPT")
    for given, wanted in (
        ((None, "hub"), (locate.DEFAULT_CONFIG, Path("fetched"))),
        (("c.yaml", "hub"), ("c.yaml", Path("fetched"))),
        ((None, "m.ckpt"), (locate.DEFAULT_CONFIG, Path("m.ckpt"))),
        (("c.yaml", "m.ckpt"), ("c.yaml", Path("m.ckpt"))),
    ):
        assert locate.choose_model(*given) == wanted
    cached.append("in the cache")
    assert locate.choose_model() == (locate.DEFAULT_CONFIG, Path("in the cache"))
    assert locate.choose_model("c.yaml") == ("c.yaml", Path("in the cache"))
    (tmp_path / "DEFAULT_CKPT").touch()
    assert locate.choose_model() == (locate.DEFAULT_CONFIG, tmp_path / "DEFAULT_CKPT")


def test_an_adapter_is_used_with_the_model_it_fits_and_downloads_nothing(tmp_path, monkeypatch):
    from ldm.checkpoint.adapters import Adapter, write_adapter

    monkeypatch.setattr(locate, "DEFAULT_CKPT", tmp_path / "model.ckpt")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("nobody asked for it"))
    for name, wide, fits in (("small", 0, True), ("wide", 1, False)):
        with safe_open(locate.MINI_CKPT, framework="pt") as file:
            layer = next(name for name in file.keys() if name.endswith("attn1.to_q.weight"))  # noqa: SIM118
            rows, columns = file.get_slice(layer).get_shape()
        layer = layer.removesuffix(".weight")
        factors = {".lora_A.weight": torch.zeros(2, columns + wide), ".lora_B.weight": torch.zeros(rows, 2)}
        path = tmp_path / f"{name}.safetensors"
        write_adapter(Adapter({layer + kind: factor for kind, factor in factors.items()}, 2, 2), path)
        if fits:
            assert locate.choose_model(lora=path) == (locate.MINI_CONFIG, locate.MINI_CKPT)
        else:
            with pytest.raises(UserError, match=r"wide\.safetensors does not fit the mini.* with --ckpt; --ckpt hub"):
                locate.choose_model(lora=path)

"""Twenty people at once: every answer is that of its question, and the server's memory stays as it is."""

import base64
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.editing.metadata import read_settings
from tests.conftest import ROOT

client = pytest.importorskip("gradio_client", reason="the page needs Gradio: pip install -e '.[web]'")
httpx = pytest.importorskip("httpx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory"),
]
CLIENTS = 20
PARTS = {"image": "GT_3500/{}_GT.png", "mask": "Mask_bbox_3500/{}_mask.png", "reference": "Ref_3500/{}_ref.png"}
BENCH = ROOT / "examples/mini"
IDS = [f"{i:012}" for i in range(1, 13)]


def resident(pid: int) -> float:
    """MB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def files_of(rng: random.Random) -> dict[str, Path]:
    """A case of the small world."""
    name = rng.choice(IDS)
    return {what: BENCH / pattern.format(name) for what, pattern in PARTS.items()}


def belongs(picture: Image.Image, files: dict[str, Path]) -> bool:
    """Whether the picture is this photo with its region painted."""
    photo, mask = (np.asarray(Image.open(files[name])) for name in ("image", "mask"))
    pixels = np.asarray(picture)
    return np.array_equal(photo[mask < 128], pixels[mask < 128]) and (photo != pixels).any()


def drive(seconds: int, pid: int, ask: Callable[[int, int], object]) -> None:
    """CLIENTS threads call `ask(client, count)` again and again. It returns what is wrong with an answer, or None."""
    end = time.monotonic() + seconds
    count, wrong = Counter(), []

    def work(number: int) -> None:
        while time.monotonic() < end and not wrong:
            try:
                problem = ask(number, count[number])
            except Exception as error:
                problem = repr(error)
            if problem:
                wrong.append(problem)
            count[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    for share in (0.1, 0.33, 0.67, 1.0):
        time.sleep(max(0, end - seconds * (1 - share) - time.monotonic()))
        memory.append(resident(pid))
    for thread in threads:
        thread.join(120)
    said = ", ".join(f"{mb:.0f}" for mb in memory)
    print(f"{sum(count.values())} edits for {CLIENTS} clients in {seconds} s; MB at 10%, 33%, 67%, 100%: {said}")
    assert not wrong, wrong[:3]
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(count) == list(range(CLIENTS)) and min(count.values()) >= 2
    assert memory[-1] < memory[1] + 30, memory


def test_twenty_clients_of_the_call(demo, tmp_path):
    callers = [
        client.Client(demo.url, verbose=False, analytics_enabled=False, download_files=tmp_path / str(number))
        for number in range(CLIENTS)
    ]

    def ask(number: int, count: int) -> object:
        rng = random.Random(f"{number} {count}")
        asked = {
            "seed": 1000 * number + count,
            "steps": rng.randint(2, 8),
            "scale": rng.choice([1.0, 3.0, 5.0]),
            "sampler": rng.choice(["plms", "ddim"]),
            "strength": rng.choice([0.7, 1.0]),
        }
        files = files_of(rng)
        handles = {what: client.handle_file(str(path)) for what, path in files.items()}
        path, settings = callers[number].predict(**handles, **asked, api_name="/edit")
        fits = belongs(Image.open(path), files)
        right = asked.items() <= settings.items() and read_settings(path) == settings and fits
        return None if right else (asked, settings, fits)

    drive(150, demo.pid, ask)


def test_twenty_clients_of_iopaints_interface(demo):
    names = {"image": "image", "mask": "mask", "reference": "paint_by_example_example_image"}

    def ask(number: int, count: int) -> object:
        rng = random.Random(f"{number} {count}")
        files, seed = files_of(rng), 1000 * number + count
        fields = {names[what]: base64.b64encode(path.read_bytes()).decode() for what, path in files.items()}
        fields |= {"sd_seed": seed, "sd_steps": rng.randint(2, 8)}
        reply = httpx.post(f"{demo.url}api/v1/inpaint", json=fields, timeout=120)
        if reply.status_code != 200:
            return reply.text
        picture = Image.open(io.BytesIO(reply.content))
        right = reply.headers["x-seed"] == str(seed) and read_settings(picture)["seed"] == seed
        return None if right and belongs(picture, files) else (fields["sd_seed"], dict(reply.headers))

    drive(60, demo.pid, ask)

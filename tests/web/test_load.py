"""Twenty people at once: every answer is that of its question, and the server's memory stays as it is."""

import random
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.editing.metadata import read_settings
from tests.conftest import ROOT

client = pytest.importorskip("gradio_client", reason="the page needs Gradio: pip install -e '.[web]'")
pytestmark = pytest.mark.slow
CLIENTS, SECONDS = 20, 150
BENCH = ROOT / "examples/mini"
IDS = [f"{i:012}" for i in range(1, 13)]


def resident(pid: int) -> float:
    """MB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see a process's memory")
def test_twenty_clients_on_one_queue(demo, tmp_path):
    end = time.monotonic() + SECONDS
    count, wrong = Counter(), []

    def ask(number: int) -> None:
        rng = random.Random(number)
        caller = client.Client(demo.url, verbose=False, analytics_enabled=False, download_files=tmp_path / str(number))
        while time.monotonic() < end and not wrong:
            name = rng.choice(IDS)
            asked = {
                "seed": 1000 * number + count[number],
                "steps": rng.randint(2, 8),
                "scale": rng.choice([1.0, 3.0, 5.0]),
                "sampler": rng.choice(["plms", "ddim"]),
                "strength": rng.choice([0.7, 1.0]),
            }
            parts = {"image": "GT_3500/{}_GT", "mask": "Mask_bbox_3500/{}_mask", "reference": "Ref_3500/{}_ref"}
            files = {what: BENCH / f"{pattern.format(name)}.png" for what, pattern in parts.items()}
            try:
                handles = {what: client.handle_file(str(path)) for what, path in files.items()}
                path, settings = caller.predict(**handles, **asked, api_name="/edit")
                photo, mask, picture = (np.asarray(Image.open(p)) for p in (files["image"], files["mask"], path))
                fits = np.array_equal(photo[mask < 128], picture[mask < 128]) and (photo != picture).any()
                if not (asked.items() <= settings.items() and read_settings(path) == settings and fits):
                    wrong.append((asked, settings, fits))
            except Exception as error:
                wrong.append((asked, repr(error)))
            count[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    for share in (0.1, 0.33, 0.67, 1.0):
        time.sleep(max(0, end - SECONDS * (1 - share) - time.monotonic()))
        memory.append(resident(demo.pid))
    for thread in threads:
        thread.join(120)
    said = ", ".join(f"{mb:.0f}" for mb in memory)
    print(f"{sum(count.values())} edits for {CLIENTS} clients in {SECONDS} s; MB at 10%, 33%, 67%, 100%: {said}")
    assert not wrong, wrong[:3]
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(count) == list(range(CLIENTS)) and min(count.values()) >= 2
    assert memory[-1] < memory[1] + 30, memory

"""keep_memory keeps freed memory in the process."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

KEEPING = """
import resource, sys, torch
from ldm.fast.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def work():
    held = []
    for megabytes in (3, 1, 5, 2, 8, 1, 4):
        held = [*held[-2:], torch.ones(megabytes * 2**18)]
for _ in range(6):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="keep_memory is for Linux")
def test_kept_memory_is_not_requested_again():
    """Counts page faults of work that has been done before. In separate processes, since keep_memory is permanent."""
    run = [sys.executable, "-c", KEEPING]
    keep, leave = (int(subprocess.check_output([*run, mode], cwd=ROOT)) for mode in ("keep", "leave"))
    assert keep <= leave / 10

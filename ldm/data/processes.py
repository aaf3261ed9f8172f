"""Work on all processor cores: a pool of processes that ends when its parent does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process

from ldm.util import UserError, cores

MAX_PROCESSES = 61  # more are impossible on Windows


@contextmanager
def worker_pool(kind: str, chunksize: int = 1) -> Iterator[Callable[..., Iterator]]:
    """A `map` that calls its function in one process per core and yields the results in order.

    kind: of the items, in the plural, for messages; chunksize: items that a process takes at a time.
    Raises UserError: a process was killed."""
    pool = ProcessPoolExecutor(min(cores(), MAX_PROCESSES), initializer=init_worker)
    try:
        yield partial(pool.map, chunksize=chunksize)
    except BrokenProcessPool as error:
        raise UserError(f"{kind}: a process was killed, perhaps for lack of memory: run the command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def init_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()

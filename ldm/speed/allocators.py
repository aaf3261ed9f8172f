"""How much faster a guided step is on a CPU if memory is kept between steps (ldm/fast/memory.py): measured in turn in
two processes, one of which keeps it."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch

from ldm.checkpoint.load import random_model
from ldm.fast import memory
from ldm.speed.compare import Row, rows_with_ratios, timed
from ldm.speed.contestants import Ours, Pictures

CPU = torch.device("cpu")


def compare_allocators(config: str, size: int, precisions: Sequence[str], rounds: int) -> list[Row]:
    """A row for each precision and each of the two processes; size: pixels of the picture's side."""
    rows = []
    for precision in precisions:
        medians = _compare(config, size, precision, rounds)
        rows += rows_with_ratios(f"guided step, {precision}", medians)
    return rows


def _compare(config: str, size: int, precision: str, rounds: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    processes, connections = [], {}
    for name, keeps in (("as the C library does", False), ("memory kept", True)):
        here, there = context.Pipe()
        arguments = (there, keeps, config, size, precision, torch.get_num_threads())
        processes.append(context.Process(target=_serve_steps, args=arguments, daemon=True))
        processes[-1].start()
        here.recv()  # the model is ready
        connections[name] = here
    times: dict[str, list[float]] = {name: [] for name in connections}
    for i in range(rounds + 1):
        for name, connection in connections.items():
            connection.send(True)
            seconds = connection.recv()
            if i > 0:  # the first round warms up
                times[name].append(seconds)
    for process, connection in zip(processes, connections.values(), strict=True):
        connection.send(False)
        process.join()
    return {name: statistics.median(each) for name, each in times.items()}


def _serve_steps(
    connection: Connection, keeps_memory: bool, config: str, size: int, precision: str, threads: int
) -> None:
    """Runs in a process of its own: answers each True with the seconds of a guided step, and ends at False."""
    if keeps_memory:
        memory.keep_memory()
    torch.set_num_threads(threads)
    ours = Ours(random_model(config, CPU), precision)
    model = ours.pipeline.model
    side = size // model.first_stage_model.factor
    x = torch.randn(1, model.channels, side, side)
    given = Pictures.random(size)
    inputs = ours.pipeline.prepare(given.images[0], given.masks[0], given.references[0], size, size)
    step = ours.parts(inputs, x, x)["guided step"]
    connection.send("ready")
    while connection.recv():
        connection.send(timed(step, CPU)[0])

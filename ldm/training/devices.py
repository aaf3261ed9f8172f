"""A run's devices and precision: the config's lightning.trainer -> keyword arguments of Lightning 2's Trainer."""

from __future__ import annotations

import os
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.fast.networks import preferred_half_dtype
from ldm.util import UserError

CLUSTER_VARIABLES = (  # one of these tells Lightning where the other nodes are
    "MASTER_ADDR",
    "SLURM_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "LSB_JOBID",
    "KUBERNETES_PORT",
)


def parse_gpus(gpus: str | int, num_nodes: int) -> list[int] | int:
    """The published flag, which lists the GPUs of all nodes -> the Trainer's `devices` on one node.

    gpus: "0,1,2", or "0,1,...,63". Raises UserError: not such a list, GPUs that the nodes cannot share equally."""
    words = [word.strip() for word in str(gpus).strip(" ,").split(",")]
    try:
        if "..." in words:
            i = words.index("...")
            first, second, last = (int(words[j]) for j in (i - 2, i - 1, i + 1))
            if i < 2 or i + 2 != len(words):
                raise ValueError
            words[i:] = range(2 * second - first, last + 1, second - first)
        numbers = [int(word) for word in words]
        if len(set(numbers)) != len(numbers) or min(numbers) < 0:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise UserError(f"--gpus {gpus} is not a list of GPUs: name each once, as 0,1,2,3 or 0,1,...,63") from error
    if num_nodes == 1:
        return numbers
    if len(numbers) % num_nodes:
        raise UserError(
            f"--gpus {gpus} lists {len(numbers)} GPUs, which {num_nodes} nodes cannot share equally: list all of them"
        )
    return len(numbers) // num_nodes


def trainer_options(config: DictConfig) -> dict[str, Any]:
    """The keyword arguments of Lightning's Trainer: the config's lightning.trainer, with the published `gpus` as
    `devices`, and in float32 on a CPU without bfloat16 arithmetic. Raises UserError: devices that do not exist."""
    options = dict(OmegaConf.to_container(config["lightning"]["trainer"], resolve=True))
    num_nodes = int(options.get("num_nodes", 1))
    gpus = options.pop("gpus", None)
    accelerator = options.get("accelerator")
    if gpus is not None and "devices" not in options and accelerator != "cpu":
        options["accelerator"] = accelerator = "gpu"
        options["devices"] = parse_gpus(gpus, num_nodes)
        available = torch.cuda.device_count()
        if available and isinstance(options["devices"], list) and max(options["devices"]) >= available:
            raise UserError(
                f"--gpus {gpus} names a missing GPU, since this machine has {available} GPUs: name those, or add "
                "--num_nodes if the GPUs are in several machines"
            )
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU that it can use: train on the CPU with --accelerator cpu --devices 1")
    half_on_cpu = str(options.get("precision")).startswith("bf16") and _on_cpu(accelerator)
    if half_on_cpu and preferred_half_dtype(torch.device("cpu")) == torch.float32:
        print("training in float32: this CPU has no bfloat16 arithmetic, and emulating it is far slower")
        options["precision"] = "32-true"
    if num_nodes > 1 and not any(name in os.environ for name in CLUSTER_VARIABLES):
        raise UserError(
            "--num_nodes lacks the environment variables by which nodes find each other: set MASTER_ADDR and "
            "MASTER_PORT (the same on all nodes) and NODE_RANK (0, 1, ...), or start the run with torchrun or SLURM"
        )
    return options


def _on_cpu(accelerator: str | None) -> bool:
    if accelerator in (None, "auto"):
        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return accelerator == "cpu"

"""Which of several processes this one is, on any number of machines: as torchrun or SLURM's srun say."""

from __future__ import annotations

import os

from ldm.util import UserError

VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


def rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are: RANK and WORLD_SIZE of torchrun, or else SLURM_PROCID and
    SLURM_NTASKS; 0 and 1 without them. Raises UserError."""
    names = next((names for names in VARIABLES if any(name in os.environ for name in names)), None)
    if names is None:
        return 0, 1
    try:
        rank, world = (int(os.environ[name]) for name in names)
        if not 0 <= rank < world:
            raise ValueError
    except (KeyError, ValueError) as error:
        first, second = names
        raise UserError(
            f"{first} and {second} are not two numbers with 0 <= {first} < {second}: unset both, or use torchrun or "
            "srun"
        ) from error
    return rank, world


def local_rank() -> int:
    """This process's number among those of its machine."""
    words = [os.environ[name] for name in LOCAL if name in os.environ]
    return int(words[0]) if words and words[0].isdigit() else 0

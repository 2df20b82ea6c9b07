"""Memory of a training run: whether it is enough, and how what a step frees is kept for the next step.

A training step on a CPU frees hundreds of megabytes, and the next step allocates them again. By default glibc returns
large blocks to the operating system, which then hands out new pages and fills each with zeros when it is first used.
This takes a considerable share of the time of a step.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

from open_clt.config import TranscoderConfig
from open_clt.memory import available_on, check_memory
from open_clt.transcoders.make import make_transcoder

MEMORY_WAYS = "use fewer features (n_features), or a smaller batch_size or memory_limit"
"""What a user can do if a training run does not fit into memory."""
_NUMBERS_PER_PARAMETER = 3
"""The parameter and the two moments of Adam; gradients need not exist all at once."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1


def check_training_memory(config: TranscoderConfig, device: torch.device) -> None:
    """Raise ResourceError if the parameters and the optimizer's state do not fit into the memory of the device."""
    with torch.device("meta"):  # a transcoder without memory of its own
        parameters = sum(parameter.numel() for parameter in make_transcoder(config).parameters())
    needed = parameters * torch.float32.itemsize * _NUMBERS_PER_PARAMETER
    check_memory(f"Training {parameters:,} parameters", needed, MEMORY_WAYS, available=available_on(device))


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees, and use large pages; returns whether the system supports it.

    Linux with glibc supports it; on other systems the function changes nothing. The setting holds for the whole process
    and all of its libraries until the process ends, and the process never returns memory to the system. Its freed
    blocks are fragmented, so it also occupies more memory than it uses. Therefore only programs whose purpose is
    training call this function: ``open-clt train`` and ``practice_run.py``.

    Call it before PyTorch allocates much memory for the first time: PyTorch then reads THP_MEM_ALLOC_ENABLE, which
    turns on large pages. The function does not change that variable if it is set already.
    """
    if not (sys.platform == "linux" and platform.libc_ver()[0] == "glibc"):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    # mallopt returns 1 on success. The first call puts all blocks on the heap, the second keeps the heap.
    return mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, _NEVER) == 1

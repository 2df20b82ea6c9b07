"""Memory that a training frees after each step, kept for the next one.

A step on a CPU frees hundreds of megabytes and asks for as many again. glibc gives large blocks back to the system,
which hands out fresh pages, each of them filled with zeros at its first touch: a share of the step that is no
arithmetic.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and ask for large pages; returns whether that is possible here.

    It is on Linux with glibc; elsewhere nothing is done. It changes the allocator of the whole process for the rest of
    its life, other libraries included, and what was once used is never given back: so only the programs that train,
    ``open-clt train`` and ``practice_run.py``, call it. The process takes more memory than it uses, since freed blocks
    lie apart. To be called before PyTorch is at work, which reads whether to ask for large pages (THP_MEM_ALLOC_ENABLE,
    left as it is if set) when it first needs much memory.
    """
    if not (sys.platform == "linux" and platform.libc_ver()[0] == "glibc"):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    # mallopt returns 1 where it did as it was told: no block is mapped apart, and the heap never shrinks.
    return mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, _NEVER) == 1

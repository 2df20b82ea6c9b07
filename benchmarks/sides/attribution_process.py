"""Processes of the benchmarks: one side of a benchmark answers requests in its own process and measures itself.

Every side imports this module in its own Python environment, so the module needs only PyTorch. Requests and answers are
lines of JSON on standard input and output; everything else that is printed goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch

Result = TypeVar("Result")
_MB = 1e6


class Run(NamedTuple):
    """The cost of one call."""

    seconds: float
    extra_memory_mb: float
    """Peak memory during the call minus the memory before it: resident memory on a CPU, allocations on a GPU."""


class Side:
    """The process of one side, seen from the benchmark's main process."""

    def __init__(self, python: Path, script: Path, folder: Path, device: str, threads: int, *options: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._log = folder / f"{script.stem}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(script), str(folder), device, *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._log.stem} ended:\n{self._log.read_text()[-3000:]}")
        return cast(dict[str, Any], json.loads(answer))

    def close(self) -> None:
        """End the process by closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(load: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Call ``load`` for the function that answers requests, and answer every line of standard input with it."""
    # Answers go to a copy of standard output; what libraries print to the original goes to standard error.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        answer = load()
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=output, flush=True)


def measured(function: Callable[[], Result], device: torch.device) -> tuple[Result, Run]:
    """Call a function; returns its result, and how long it took and how much more memory it needed at its peak."""
    gc.collect()
    before = _start_memory(device)
    started = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return result, Run(seconds, (_peak_memory(device) - before) / _MB)


def _start_memory(device: torch.device) -> int:
    """Reset the peak of memory, and return the memory in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # Return what earlier calls freed to the system: if the process kept it, this call would seem to need less memory.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A number of bytes from /proc/self/status, Linux's record of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no line {name}; memory can be measured on Linux only.")

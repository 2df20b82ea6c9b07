"""Freed memory stays with the process that asked for it, and is not fetched again page by page."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from open_clt.training import memory

FAULTS = """
import os, resource, torch
from open_clt.training.memory import keep_freed_memory

# Each of the two is a process of its own: what is said to an allocator holds for the process's life.
keep = os.fork() == 0
if keep:
    assert keep_freed_memory()
else:
    assert os.wait()[1] == 0
# What was freed may be a few bytes too small for an aligned block of the same size, until neighbours are put together.
for _ in range(20):
    torch.ones(1 << 24)  # 64 MB, freed again
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
print("kept" if keep else "given back", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_what_was_freed_is_used_again_without_new_pages() -> None:
    small_pages = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", FAULTS], env=small_pages, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page_faults = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in run.stdout.splitlines())}
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert page_faults["given back"] > pages / 2
    assert page_faults["kept"] < pages / 50


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    for system, libc in (("darwin", ""), ("linux", "musl")):
        monkeypatch.setattr(memory.sys, "platform", system)
        monkeypatch.setattr(memory.platform, "libc_ver", lambda libc=libc: (libc, ""))
        assert memory.keep_freed_memory() is False
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ

"""Freed memory stays with the process, so that using it again needs no new pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from open_clt.training import memory

FAULTS = """
import os, resource, torch
from open_clt.training.memory import keep_freed_memory

# The setting of an allocator holds until its process ends, so each of the two settings has its own process.
keep = os.fork() == 0
if keep:
    assert keep_freed_memory()
else:
    assert os.wait()[1] == 0
# A freed block can be a few bytes too small for an aligned block of the same size, until the allocator merges blocks.
for _ in range(20):
    torch.ones(1 << 24)  # 64 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
print("kept" if keep else "given back", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
@pytest.mark.slow
def test_freed_memory_is_used_again_without_new_pages() -> None:
    small_pages = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", FAULTS], env=small_pages, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    page_faults = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in run.stdout.splitlines())}
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert page_faults["given back"] > pages / 2
    assert page_faults["kept"] < pages / 50


def test_systems_without_glibc_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    for system, libc in (("darwin", ""), ("linux", "musl")):
        monkeypatch.setattr(memory.sys, "platform", system)
        monkeypatch.setattr(memory.platform, "libc_ver", lambda libc=libc: (libc, ""))
        assert memory.keep_freed_memory() is False
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ

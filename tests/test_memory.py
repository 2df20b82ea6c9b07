"""Memory: a job that does not fit is one sentence, whichever library cannot allocate."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from open_clt import files, memory
from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.errors import CheckpointError, ConfigError, ResourceError
from open_clt.memory import available_memory, check_address_space, check_memory, memory_errors
from open_clt.program import run_program
from open_clt.training.memory import check_training_memory
from tests.graphs.hand_graph import hand_graph
from tests.refusals import refuses

TOO_LARGE = 2**55
ALLOCATIONS = {
    "Python": lambda: bytearray(TOO_LARGE),
    "NumPy": lambda: np.zeros(TOO_LARGE, dtype=np.uint8),
    "PyTorch": lambda: torch.zeros(TOO_LARGE, dtype=torch.uint8),
}


def raised_while(first: Exception, second: Exception) -> Exception:
    """The second error, as if it was raised while the first one was handled."""
    second.__context__ = first
    return second


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 10 bytes of memory."""
    monkeypatch.setattr(memory, "available_memory", lambda: 10)


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_a_failed_allocation_is_one_sentence(
    allocate: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with refuses(ResourceError, "The job", "do less"), memory_errors("The job", "do less"):
        allocate()
    assert run_program("name", lambda: allocate() and 0) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 20 bytes from file <a>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        raised_while(MemoryError(), ImportError("a library cannot be imported")),
    ],
    ids=str,
)
def test_other_forms_of_failed_allocations_are_known(error: Exception) -> None:
    with refuses(ResourceError, "The job"), memory_errors("The job", "do less"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ConfigError("k is 0")], ids=str)
def test_other_errors_are_raised_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_errors("The job", "do less"):
        raise error
    assert raised.value is error


IN_C = SystemError("error return without exception set")


def test_an_error_of_c_code_is_a_failed_allocation_where_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (memory.resource.RLIM_INFINITY,) * 2)
    assert not memory.is_failed_allocation(IN_C)
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (TOO_LARGE,) * 2)
    assert memory.is_failed_allocation(IN_C)
    assert not memory.is_failed_allocation(SystemError("unknown opcode"))


def test_a_file_that_memory_is_too_small_for_is_not_called_damaged() -> None:
    error = files.unreadable(Path("a.safetensors"), "safetensors", ConfigError("damaged"))
    assert isinstance(error, CheckpointError)
    with refuses(ResourceError, "a.safetensors"):
        raise files.unreadable(Path("a.safetensors"), "safetensors", OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_a_library_is_imported_only_if_the_limit_leaves_enough_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (TOO_LARGE,) * 2)
    check_address_space("Importing it", 2**20)
    with refuses(ResourceError, "Importing it", f"{TOO_LARGE:,}", "ulimit"):
        check_address_space("Importing it", TOO_LARGE)


def test_a_job_starts_only_if_its_memory_is_available() -> None:
    check_memory("The job", 100, "do less", available=100)
    with refuses(ResourceError, "The job", 101, 100, "do less"):
        check_memory("The job", 101, "do less", available=100)


def test_the_limit_of_the_process_is_available_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory()
    if free is None:
        pytest.skip("the system does not say how much memory is available")
    assert 0 < free < TOO_LARGE
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (0, 0))
    assert available_memory() == 0


@pytest.mark.usefixtures("full")
def test_large_jobs_are_refused_before_they_start() -> None:
    with refuses(ResourceError, hand_graph().n_nodes):
        hand_graph().adjacency()
    with refuses(ResourceError, "n_features"):
        check_training_memory(
            CrossLayerConfig(n_layers=2, d_model=4, n_features=6, nonlinearity=ReLUConfig()), torch.device("cpu")
        )

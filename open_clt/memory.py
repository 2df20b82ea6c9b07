"""Memory: a job that needs more memory than the machine has is one sentence, said before the job starts where possible.

``check_memory`` compares the need of a job with the memory that is available. ``memory_errors`` turns the failed
allocations of Python, NumPy and PyTorch into the same error. Both name the job and ways out.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.errors import OpenCLTError, ResourceError

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

_FAILED_ALLOCATION = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|bad_alloc|can't start new thread"
    rf"|storage size calculation overflowed|failed to map segment|os error {errno.ENOMEM}\b",
    re.IGNORECASE,
)
_FAILED_IN_C = re.compile("error return without exception set|returned NULL without setting an exception")
"""What Python says where C code, such as that of imports, could not allocate the error that it wanted to raise."""
_REQUEST = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def check_address_space(job: str, needed: int) -> None:
    """Raise ResourceError if a limit of this process (``ulimit -v``) leaves fewer bytes of address space than needed.

    Libraries need them when they are imported, whether they use that memory or not. Where they get less, they may
    print lines of their own, or end the process.
    """
    free = _free_of_process()
    if free is not None and free < needed:
        raise ResourceError(
            f"{job} needs at least {needed:,} bytes of address space, and the limit of this process leaves {free:,}; "
            "raise the limit (ulimit -v)."
        )


def check_memory(job: str, needed: int, ways: str, *, available: int | None = None) -> None:
    """Raise ResourceError if a job needs more bytes than are available, which is the CPU's memory unless given.

    ``job`` is the subject of a sentence, and ``ways`` are what a user can do, as a command. ``needed`` is a lower
    bound: a job that is certain to fail does not start.
    """
    available = available_memory() if available is None else available
    if available is not None and needed > available:
        raise ResourceError(
            f"{job} needs at least {needed:,} bytes of memory, and {available:,} bytes are available; {ways}."
        )


def available_on(device: torch.device) -> int | None:
    """Number of bytes that this process can still allocate on a device; None if the system does not say."""
    if device.type != "cuda":
        return available_memory()
    import torch

    return torch.cuda.mem_get_info(device)[0]


def largest_memory(device: torch.device) -> int | None:
    """Largest number of bytes that this process has held so far, on a GPU if that is its device; None if not known."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def memory_errors(job: str, ways: str) -> Generator[None]:
    """Turn a failed allocation in the block into ResourceError; the parameters are those of ``check_memory``."""
    try:
        yield
    except Exception as error:
        if not is_failed_allocation(error):
            raise
        raise ResourceError(f"{job} needs more memory than the machine has{failed_request(error)}; {ways}.") from error


def is_failed_allocation(error: BaseException) -> bool:
    """Whether an error of Python or of a library says that memory cannot be allocated, or arose because of such one."""
    return not isinstance(error, OpenCLTError) and any(map(_says_so, _with_causes(error)))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, SystemError):  # it may be a bug of a library, unless memory is limited
        return address_space_is_limited() and bool(_FAILED_IN_C.search(str(error)))
    # Libraries raise RuntimeError or errors of their own, which only their message tells from others.
    return not isinstance(error, OpenCLTError) and bool(_FAILED_ALLOCATION.search(str(error)))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those during whose handling it was raised."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def failed_request(error: Exception) -> str:
    """The size of the allocation that failed, in parentheses, if the error states it."""
    stated = _REQUEST.search(str(error))
    return f" (an allocation of {stated[1]} failed)" if stated else ""


def available_memory() -> int | None:
    """Number of bytes that this process can still allocate on the CPU; None if the system does not say."""
    known = [free for free in (_free_of_machine(), _free_of_group(), _free_of_process()) if free is not None]
    return max(0, min(known)) if known else None


def address_space_is_limited() -> bool:
    """Whether the system limits the address space of this process (``ulimit -v``)."""
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _free_of_machine() -> int | None:
    with suppress(OSError):
        sizes = re.findall(r"^(?:MemAvailable|SwapFree):\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return sum(map(int, sizes)) * 1024 if sizes else None
    return None


def _free_of_group() -> int | None:
    """What the control group of a container leaves; the cache of files is given back when memory is needed."""
    with suppress(OSError, ValueError, IndexError):
        name = re.findall(r"^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)[0]
        group = Path(f"/sys/fs/cgroup{name}")
        limit, used = (int((group / f"memory.{part}").read_text()) for part in ("max", "current"))
        cache = re.findall(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return limit - used + sum(map(int, cache))
    return None


def _free_of_process() -> int | None:
    """What the limit of this process leaves (``ulimit -v``)."""
    if resource is None or not address_space_is_limited():
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with suppress(OSError):
        return limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return None

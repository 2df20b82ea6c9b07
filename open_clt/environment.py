"""Environment variables: a value that a library cannot read ends a program with one sentence.

Libraries read environment variables while they are imported, where a wrong value is a traceback, or lines of C code
that Python cannot catch. Programs call ``check_environment`` before they import a library, and ``refused_variable``
explains the errors that remain.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

from open_clt.errors import one_line, short_value
from open_clt.interrupts import end_on_signals

try:
    import resource
except ImportError:  # Windows
    resource = None

_INTEGER = (re.compile(r"\s*[+-]?\d+\s*"), "an integer")
_THREADS = (re.compile(r"\s*0*[1-9]\d*\s*(,\s*0*[1-9]\d*\s*)*"), "a number of threads, of at least 1")
_COUNT = (re.compile(r"\s*[+]?\d+\s*"), "a number of at least 0")
_SWITCH = (re.compile(r"\s*(true|false)\s*", re.IGNORECASE), "true or false")
_STACK = (re.compile(r"\s*[1-9]\d*\s*[bkmg]?\s*", re.IGNORECASE), "a size, such as 4M")
_SPINS = (re.compile(r"\s*(\d+\s*[kmgt]?|infinite|infinity)\s*", re.IGNORECASE), "a number")
_SCHEDULE = (
    re.compile(
        r"\s*((non)?monotonic\s*:)?\s*(static|dynamic|guided|auto|runtime)\s*(,\s*\d+\s*)?",
        re.IGNORECASE,
    ),
    "static, dynamic, guided or auto",
)
_BOUND = "(primary|master|close|spread)"
_BINDING = (
    re.compile(
        r"\s*(true|false|(primary|master|close|spread)(\s*,\s*(primary|master|close|spread))*)\s*", re.IGNORECASE
    ),
    "true, false, primary, close or spread",
)
_PLACES = (
    re.compile(r"\s*((threads|cores|sockets|ll_caches|numa_domains)\s*(\(\d+\))?|[{}\d\s,:!-]+)\s*", re.IGNORECASE),
    "threads, cores, sockets or a list of places",
)


def _one_of(names: str) -> tuple[re.Pattern[str], str]:
    """The legal values of a variable that is one of these names, or empty."""
    return re.compile(f"({names.replace(', ', '|')})?"), f"one of {names}"


_LEVELS = "debug, info, warning, error, critical"
_LEGAL = {
    "OMP_NUM_THREADS": _THREADS,
    "OMP_THREAD_LIMIT": _THREADS,
    **dict.fromkeys(("OMP_DYNAMIC", "OMP_NESTED", "OMP_CANCELLATION", "OMP_DISPLAY_AFFINITY"), _SWITCH),
    **dict.fromkeys(("OMP_MAX_ACTIVE_LEVELS", "OMP_DEFAULT_DEVICE", "OMP_MAX_TASK_PRIORITY", "GOMP_DEBUG"), _COUNT),
    **dict.fromkeys(("OMP_STACKSIZE", "GOMP_STACKSIZE"), _STACK),
    "OMP_DISPLAY_ENV": (re.compile(r"\s*(true|false|verbose)\s*", re.IGNORECASE), "true, false or verbose"),
    "OMP_WAIT_POLICY": (re.compile(r"\s*(active|passive)\s*", re.IGNORECASE), "active or passive"),
    "OMP_SCHEDULE": _SCHEDULE,
    "OMP_PROC_BIND": _BINDING,
    "OMP_PLACES": _PLACES,
    "GOMP_SPINCOUNT": _SPINS,
    "TORCH_CPP_LOG_LEVEL": (
        re.compile(r"(info|warning|error|fatal|[0-3])?", re.IGNORECASE),
        "one of INFO, WARNING, ERROR, FATAL, or their numbers 0 to 3",
    ),
    "HF_HUB_VERBOSITY": _one_of(_LEVELS),
    "DATASETS_VERBOSITY": _one_of(_LEVELS),
    "TRANSFORMERS_VERBOSITY": _one_of(f"detail, {_LEVELS}"),
    "HF_HUB_DOWNLOAD_TIMEOUT": _INTEGER,
    "HF_HUB_ETAG_TIMEOUT": _INTEGER,
    "SOURCE_DATE_EPOCH": _INTEGER,
    **dict.fromkeys(("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT"), _INTEGER),
}
"""Variables that libraries report badly: on several lines, on standard output, not while they are imported, or in a
line beside those of a program, which goes on without the value. (Python itself reports its own, such as
PYTHONWARNINGS, before a program begins.)"""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how threads of OpenMP wait for work."""
_LEAST_ADDRESS_SPACE = 700 * 2**20
"""Bytes of address space below which PyTorch may abort the process while it is imported (700 MiB)."""
_SHORTEST_NAME = 6
"""Shorter names of variables are ordinary words in the message of a library."""


def begin_program(program: str) -> None:
    """Handle signals and check the environment, before a program imports a library."""
    end_on_signals(program)
    check_environment(program)


def check_environment(program: str) -> None:
    """End the process with one line and status 2 if an environment variable has a value that libraries refuse.

    A program calls this function before it imports a library. Later errors of imports end it in the same way. The
    threads of PyTorch sleep while they wait, unless a variable says how they wait.
    """
    # matplotlib prints lines about a home directory that it cannot write to, although it works without one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    for name, (legal, what) in _LEGAL.items():
        value = os.environ.get(name)
        if value is not None and not legal.fullmatch(value):
            _end(program, f"The environment variable {name} is {short_value(value)}; it must be {what}, or not be set.")
    _check_address_space(program)
    _let_threads_sleep()
    former = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if (message := refused_variable(error)) is None:
            former(kind, error, traceback)
        else:
            _end(program, message)

    sys.excepthook = explain


def _check_address_space(program: str) -> None:
    """End the process if a limit (``ulimit -v``) leaves so little address space that PyTorch would abort it."""
    if resource is None:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_SPACE:
        _end(
            program,
            f"The address space of the process is limited to {limit:,} bytes, and PyTorch needs at least "
            f"{_LEAST_ADDRESS_SPACE:,}; raise the limit (ulimit -v).",
        )


def _let_threads_sleep() -> None:
    """Let the threads of OpenMP sleep while they wait for work, unless the user has said how they wait.

    By default they wait in a loop, which takes the processor from other programs; while these run, a training run of
    the embedded model took more than six times as long. OpenMP reads the variable when PyTorch is imported.
    """
    if not os.environ.keys() & set(_WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def refused_variable(error: BaseException) -> str | None:
    """A sentence on the environment variable because of which a module cannot be imported; None for other errors."""
    if not (isinstance(error, ValueError | RuntimeError) and any(map(_is_of_import, _causes(error)))):
        return None
    message = str(error)
    blames: tuple[Callable[[str, str], bool], ...] = (
        lambda name, value: len(name) >= _SHORTEST_NAME and re.search(rf"\b{re.escape(name)}\b", message) is not None,
        lambda name, value: value != "" and repr(value) in message,
    )
    for is_blamed in blames:
        for name, value in os.environ.items():
            if is_blamed(name, value):
                return (
                    f"The environment variable {name} is {short_value(value)}, which a library refuses; correct it or "
                    f"unset it ({' '.join(message.split())})."
                )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_of_import(error: BaseException) -> bool:
    """Whether an error was raised while a module of a library was imported."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>" and name.split(".")[0] not in ("__main__", "open_clt"):
            return True
        traceback = traceback.tb_next
    return False


def _end(program: str, message: str) -> NoReturn:
    """End the process with one line on stderr; a hook of Python for errors cannot set the status in another way."""
    os.write(2, f"{program}: {one_line(message)}\n".encode(errors="backslashreplace"))
    os._exit(2)

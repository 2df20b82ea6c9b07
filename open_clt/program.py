"""Programs: how ``open-clt`` and ``practice_run.py`` end, which is with an exit status and at most one line on stderr.

    status 0          success
    status 1          another process of the same command has ended, or a bug, with a traceback
    status 2          a mistake that the user can correct, a full disk, or too little memory
    status 128 + N    signal N ended the program: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP (a closed
                      terminal), 141 after a closed output

Of several processes that torchrun or Lightning started on a machine, only the first one to end prints its line
(``first_line.py``).

``run_program`` handles signals while a program runs. The first signal raises ``Stopped``, so that files and locks are
released; the next one ends the process at once, and so does the first one during an import, where libraries discard
exceptions or crash. ``open_clt.files`` keeps saved files whole in all cases.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

from open_clt.environment import refused_variable
from open_clt.errors import OpenCLTError, one_line
from open_clt.first_line import another_speaks, is_first_to_speak, is_one_of_several, join_processes
from open_clt.interrupts import NAMES
from open_clt.memory import address_space_is_limited, failed_request, is_failed_allocation

_WAYS_OUT = "use shorter texts, smaller batches or fewer features, or a machine with more memory"
_LOST_PROCESS = re.compile(
    r"(closed|reset) by (remote )?peer|broken pipe|connection was likely closed|remote process exited", re.IGNORECASE
)
"""Errors of PyTorch in a process that exchanges tensors with one that has ended."""
_LOST = (
    "Another process of this command has ended without a message, as when the system kills it because memory is short; "
    "start the command again, and resume a training run from its last checkpoint."
)
_SIGPIPE = 13
"""Number of the signal of a closed output, which Windows does not name."""


class Stopped(BaseException):
    """A signal asks the program to end; it is not an Exception, so code that handles failures does not catch it."""

    def __init__(self, number: int, advice: str = "", *, silent: bool = False) -> None:
        """``number`` is that of the signal, and ``advice`` a sentence on how to go on.

        Processes that stop together are ``silent``, except the first of them.
        """
        super().__init__(number)
        self.number = number
        self.advice = advice
        self.silent = silent


def run_program(name: str, program: Callable[[], int], *, ends_process: bool = False) -> int:
    """Run a program and return its exit status; ``name`` begins its line on stderr.

    With ``ends_process``, the process ends after the program, so signals are handled until then.
    """
    statuses: list[int] = []
    if ends_process:
        _prepare_streams()
        atexit.register(_ignore_signals)
        atexit.register(_end_one_of_several, statuses)  # Python runs both last, because they are registered first
        join_processes()
    handlers = _Handlers(name)
    with handlers.installed(keep=ends_process):
        try:
            status = program()
            _flush_output()
        except BaseException as error:
            try:
                ended = _ended(name, error, handlers.received)
            except Stopped as stopped:  # a signal arrived before the line was printed
                ended = _end(name, stopped)
            if ended is None:
                if isinstance(error, Exception):
                    statuses.append(1)
                raise
            status = ended
        statuses.append(status)
        return status


def _ignore_signals() -> None:
    """Ignore signals while Python frees its memory: all work is done, and handlers of Python do not run any more.

    Python would give the signals back to the system, which would end the process with another status and no line.
    """
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)


def _end_one_of_several(statuses: Sequence[int]) -> None:
    """End this process with its status at once if it worked together with others, or if a signal ended its work.

    Otherwise Python would destroy PyTorch's process groups, whose threads sometimes abort the process: its status would
    be another one, and stderr would have one more line (docs/log.md, 2026-11-26). The same happens to a thread that
    still computes, as in the explorer, when Python stops it inside of a library.
    """
    distributed = sys.modules.get("torch.distributed")
    is_distributed = is_one_of_several() or (distributed is not None and distributed.is_initialized())
    is_working = any(thread.daemon for thread in threading.enumerate()) and max(statuses, default=0) > 128
    if statuses and (is_distributed or is_working):
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(statuses[-1])


def _prepare_streams() -> None:
    """Open the null device for each closed standard stream, and let stdout hold every text, as stderr does.

    Otherwise the next file that is opened would get the number of a closed stream, and what is written to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    """Write what was printed; if that fails, drop it, because Python would report the error again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _ended(name: str, error: BaseException, received: int | None) -> int | None:
    """Print the line of a program that an error ended, and return its exit status; None for an error that is a bug."""
    match error:
        case Stopped():
            return _end(name, error)
        case KeyboardInterrupt():
            return _end(name, Stopped(signal.SIGINT))
        case _ if received is not None:  # a library has replaced Stopped with an error of its own
            return _end(name, Stopped(received))
        case BrokenPipeError():  # the reader has closed the output, as in `open-clt ... | head`
            with suppress(OSError):
                _flush_output()
            return 128 + _SIGPIPE
        case OpenCLTError():
            _say(name, str(error))
        case Exception() if is_failed_allocation(error):
            _say(name, _too_little_memory(error))
        case OSError():
            subject = error.filename or "A file or the output"
            _say(name, f"{subject} cannot be read or written ({error.strerror or error}).")
        case Exception() if (message := refused_variable(error)) is not None:
            _say(name, message)
        case RuntimeError() if is_one_of_several() and _LOST_PROCESS.search(str(error)):
            if not another_speaks():
                _say(name, _LOST)
            return 1
        case Exception() if is_one_of_several() and not is_first_to_speak():
            return 1
        case _:
            return None
    return 2


def _too_little_memory(error: Exception) -> str:
    whose = "this process may have (ulimit -v)" if address_space_is_limited() else "of the machine"
    return f"The memory {whose} is too small{failed_request(error)}; {_WAYS_OUT}."


def _end(name: str, stopped: Stopped) -> int:
    """Print the line of a program that a signal ended, unless another process prints it, and return the exit status."""
    if not stopped.silent:
        _say(name, f"{NAMES[stopped.number]}. {stopped.advice}")
    return 128 + stopped.number


def _say(name: str, message: str) -> None:
    """Print a line on stderr, if anything still reads it."""
    with suppress(OSError):
        if is_first_to_speak():
            sys.stderr.write(f"{name}: {one_line(message)}\n")
            sys.stderr.flush()


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a program imports a module in this frame or in one that called it."""
    while frame is not None and frame.f_code is not run_program.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class _Handlers:
    """The handlers of the signals of one program."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.received: int | None = None
        self._line_is_printed = False

    @contextmanager
    def installed(self, *, keep: bool) -> Generator[None]:
        """Handle signals in the block, and with ``keep`` after it; signals that the process ignores stay ignored."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
            yield
            return
        former, former_hook = {number: signal.getsignal(number) for number in NAMES}, sys.unraisablehook
        handled = [number for number, handler in former.items() if handler is not signal.SIG_IGN]
        for number in handled:
            signal.signal(number, self._stop)
        sys.unraisablehook = self._unraisable(former_hook)
        try:
            yield
        finally:
            self._line_is_printed = self.received is not None
            for number in handled:
                signal.signal(number, self.stop_at_once if keep else former[number])
            sys.unraisablehook = former_hook

    def stop_at_once(self, number: int, frame: FrameType | None) -> NoReturn:
        """End the process; print the line of the signal unless it, or another process, has printed one."""
        if not self._line_is_printed and is_first_to_speak():
            # print could be interrupted by this very handler while it holds the lock of stderr
            os.write(2, f"{self._name}: {NAMES[number]}.\n".encode())
        os._exit(128 + (self.received or number))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None or _is_importing(frame):
            self.stop_at_once(number, frame)
        self.received = number
        raise Stopped(number)

    def _unraisable(self, former: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A hook that ends the process if Stopped was raised where Python discards exceptions, as in ``__del__``."""

        def hook(unraisable: Any) -> None:
            if isinstance(unraisable.exc_value, Stopped):
                os._exit(_end(self._name, unraisable.exc_value))
            former(unraisable)

        return hook

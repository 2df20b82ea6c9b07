"""An explorer that is made in a thread, so that the first page does not wait for the libraries that it imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, final

from open_clt.errors import ConfigError
from open_clt.explorer.worker import Worker

if TYPE_CHECKING:
    from open_clt.explorer.explorer import Explorer

GetExplorer: TypeAlias = "Callable[[], Explorer]"
"""Function that returns the explorer, and waits for it if it is being made."""


@final
class LaterExplorer:
    """An explorer that ``make`` returns; a call waits for it, and raises ConfigError if it could not be made."""

    def __init__(self, make: Callable[[], Explorer]) -> None:
        self._worker = Worker()
        self._job = self._worker.submit("load", make)

    def __call__(self) -> Explorer:
        self._job.finished.wait()
        if self._job.state != "done":
            raise ConfigError(self._job.error or "The explorer was closed while it started.")
        return self._job.result

    def close(self, wait: float | None = None) -> None:
        """Close the explorer if it is made, and end the thread."""
        self._worker.close(wait)
        if self._job.state == "done":
            self._job.result.close(wait)


def getter(explorer: Explorer | LaterExplorer) -> GetExplorer:
    """A function that returns the explorer."""
    return explorer if isinstance(explorer, LaterExplorer) else lambda: explorer

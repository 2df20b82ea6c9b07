"""``metrics.csv``: the numbers of a training, a row for each time they are written, read again when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from open_clt.files import read_rows, unreadable, write_rows


@final
class MetricsFile(Logger):
    """A logger that keeps one CSV file, whole at every moment.

    A training that is resumed goes on where it was: rows of steps that are taken again are replaced.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """How Lightning calls it."""
        return "metrics"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @property
    def save_dir(self) -> str:
        """Where the file is."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings have a file of their own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add some numbers to the row of a step."""
        step = step or 0
        if self._rows is None:
            self._rows = {number: row for number, row in self._read().items() if number < step}
        # Lightning counts steps from 0 and knows nothing of its own ``epoch`` that would tell anybody anything here.
        row = self._rows.setdefault(step, {"step": step + 1})
        row.update({name: value for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if self._rows is None:
            return  # nothing is new, and the file of an earlier part may be there
        write_rows(self.path, list(self._rows.values()))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _read(self) -> dict[int, dict[str, Any]]:
        """The rows of an earlier part of the same training."""
        if not self.path.is_file():
            return {}
        try:
            return {int(row["step"]) - 1: dict(row) for row in read_rows(self.path)}
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(self.path, "CSV", error) from error

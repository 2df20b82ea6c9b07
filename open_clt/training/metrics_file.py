"""The file ``metrics.csv``: one row of numbers for each logged step of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from open_clt.files import WRONG_VALUES, read_rows, unreadable, write_rows


@final
class MetricsFile(Logger):
    """A Lightning logger that writes one CSV file; each write replaces the whole file.

    A resumed run keeps the rows of the steps before its checkpoint, and replaces the rows of the steps after it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The name by which Lightning knows the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """Always 0: a run has a single file of metrics."""
        return 0

    @property
    def save_dir(self) -> str:
        """The directory of the file."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are saved in other files."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add numbers to the row of a step."""
        step = step or 0
        if self._rows is None:
            self._rows = {earlier: row for earlier, row in self._read().items() if earlier < step}
        # Lightning counts steps from 0. Its ``epoch`` is always 0 here, since all epochs are one iteration for it.
        row = self._rows.setdefault(step, {"step": step + 1})
        row.update({name: value for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if self._rows is None:
            return  # nothing was logged yet; the file of the run to resume must stay as it is
        write_rows(self.path, list(self._rows.values()))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are not written yet."""
        self.save()

    def _read(self) -> dict[int, dict[str, Any]]:
        """The rows that an earlier part of the same run wrote, by step counted from 0."""
        if not self.path.is_file():
            return {}
        try:
            return {int(row["step"]) - 1: dict(row) for row in read_rows(self.path)}
        except WRONG_VALUES as error:
            raise unreadable(self.path, "CSV", error) from error

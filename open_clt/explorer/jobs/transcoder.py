"""Jobs of the transcoder page: its figures, and the evaluation on a text."""

from __future__ import annotations

from typing import Any

from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.requests import Request, Work, text_of
from open_clt.explorer.measurements import FIGURES


def figure(explorer: Explorer, request: Request) -> Work:
    """One panel of the page: its figure, or a sentence in its place."""
    name = text_of(request, "name")
    if name not in FIGURES:
        raise ConfigError(f"{name[:40]!r} is not a figure of the transcoder; the figures are {', '.join(FIGURES)}.")
    return lambda: explorer.measurements.panel(name, explorer.wait_for_models())


def evaluate(explorer: Explorer, request: Request) -> Work:
    """Measure the transcoder on a text; the result is the panel of the evaluation."""

    def work() -> dict[str, Any]:
        models = explorer.wait_for_models()
        explorer.measurements.evaluate(models)
        return explorer.measurements.panel("evaluation", models)

    return work

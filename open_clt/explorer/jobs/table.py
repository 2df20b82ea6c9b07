"""The table of all jobs, by the name with which a page asks for one; a new job is its function and one line here."""

from __future__ import annotations

from open_clt.errors import ConfigError
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs import compare, features, graphs, steering, transcoder
from open_clt.explorer.jobs.requests import MakeJob, Request
from open_clt.explorer.worker import Job

JOBS: dict[str, MakeJob] = {
    "trace": graphs.trace,
    "view": graphs.view,
    "circuit": graphs.circuit,
    "predictions": graphs.predictions,
    "heads": graphs.heads,
    "attention": graphs.attention,
    "suggestions": graphs.suggestions,
    "export": graphs.write_file,
    "probe": features.probe,
    "measure": features.measure,
    "steer": steering.steer,
    "continuations": steering.proceed,
    "figure": transcoder.figure,
    "evaluate": transcoder.evaluate,
    "trace_compared": graphs.trace,
    "compare": compare.prompts,
    "compare_transcoders": compare.transcoders,
}


def start(explorer: Explorer, kind: str, request: Request) -> Job:
    """Check a request and let the worker do it; raises an OpenCLTError if something is wrong with the request."""
    if kind not in JOBS:
        raise ConfigError(f"The explorer does not have jobs of the kind {kind[:40]!r}.")
    return explorer.worker.submit(kind, JOBS[kind](explorer, request))

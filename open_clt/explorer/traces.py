"""Traces: the graphs that an explorer has computed or read, kept in memory and in the cache of OpenCLT.

A trace is an attribution graph, and what both models predict on its prompt. Its key is a hash of everything that it was
computed from, so the same prompt is traced once, also after a restart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, cast, final

import torch

from open_clt import files
from open_clt.attribution.attribute import attribute
from open_clt.errors import CheckpointError, ConfigError, OpenCLTError
from open_clt.evaluation.calibration import with_stored_confidence
from open_clt.explorer.models import Models
from open_clt.graphs.graph import GRAPH_FILES, AttributionGraph, read_files, stored_values, write_files
from open_clt.hub.repository import cache_directory
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.visualization.labels import token_label
from open_clt.visualization.prompt_report.predictions import predictions

logger = logging.getLogger(__name__)

START = "start"
"""Key of the graph that ships with the package."""
BUDGET = 500
"""Default of the largest number of features that are attributed, so that long prompts take seconds."""
LONGEST_PROMPT = 400
"""Largest number of tokens of a prompt; a graph of more cannot be looked at."""
_IN_MEMORY, _IN_CACHE = 6, 60
_FORMAT = files.FileFormat("open-clt-trace", newest=1)
_FACTS = "trace.json"
_KEY = re.compile("[0-9a-z]{20}")
"""A key that may be the name of a folder in the cache."""
_TOP = 3


@final
@dataclass(frozen=True, kw_only=True)
class Trace:
    """A graph, and what is shown beside it."""

    key: str
    graph: AttributionGraph
    predictions: tuple[dict[str, Any], ...] = ()
    """For each position the likeliest next tokens of both models; empty if they were not computed."""
    name: str = ""
    """Name of the file that the graph was read from; empty for a graph that was computed."""
    automatic: bool = False
    """Whether the labels that the graph has are automatic ones, as those of the start graph."""

    __repr__ = short_repr


@final
class Traces:
    """The traces of an explorer; the latest ones are in memory, and more of them in the cache."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or cache_directory() / "explorer"
        self._latest: OrderedDict[str, Trace] = OrderedDict()
        self._lock = Lock()

    def find(self, key: str) -> Trace | None:
        """The trace with a key, from memory or from the cache; None if neither has it, or if its files are damaged."""
        with self._lock:
            if key in self._latest:
                self._latest.move_to_end(key)
                return self._latest[key]
        if not _KEY.fullmatch(key):
            return None
        try:
            trace = load_trace(self._folder / key)
        except OpenCLTError:
            return None
        self._remember(trace)
        return trace

    def hold(self, trace: Trace) -> None:
        """Keep a trace in memory only."""
        self._remember(trace)

    def keep(self, trace: Trace) -> None:
        """Keep a trace in memory and in the cache; a cache that cannot be written does not hold up the explorer."""
        self._remember(trace)
        if not _KEY.fullmatch(trace.key):
            return
        try:
            save_trace(trace, self._folder / trace.key)
            self._forget()
        except (OpenCLTError, OSError) as error:
            logger.info("The trace is kept in memory only: %s", error)

    def keep_foreign(self, trace: Trace) -> Trace:
        """Keep the trace of a file under a key that follows from its content, and return it.

        The key in the file is not used: a file of somebody else may name the key of any prompt, whose trace it would
        replace. If the trace with this key has the same graph, that trace is returned.
        """
        graph, known = _graph_bytes(trace.graph), self.find(trace.key)
        if known is not None and _graph_bytes(known.graph) == graph:
            return known
        shown_beside = json.dumps([trace.predictions, trace.name]).encode()
        trace = replace(trace, key=file_key(shown_beside + graph))
        self.keep(trace)
        return trace

    def _remember(self, trace: Trace) -> None:
        with self._lock:
            self._latest[trace.key] = trace
            self._latest.move_to_end(trace.key)
            while len(self._latest) > _IN_MEMORY:
                self._latest.popitem(last=False)

    def _forget(self) -> None:
        """Delete the oldest traces of the cache, so that it does not grow without end.

        Only files that ``save_trace`` wrote are deleted; a folder in which other files lie stays with them.
        """
        heads = [path for path in self._folder.glob(f"*/{_FACTS}") if _is_kept(path.parent)]
        for path in sorted(heads, key=lambda path: path.stat().st_mtime, reverse=True)[_IN_CACHE:]:
            if files.is_ours(path.parent, _FACTS, _FORMAT):
                files.remove_saved(path.parent, _FACTS, GRAPH_FILES)
                with suppress(OSError):
                    path.parent.rmdir()


def _is_kept(folder: Path) -> bool:
    """Whether a folder has the name of a key, and is not a link to another place."""
    return _KEY.fullmatch(folder.name) is not None and not folder.is_symlink()


def _graph_bytes(graph: AttributionGraph) -> bytes:
    """A graph as bytes, which are equal for equal graphs."""
    values, tensors = stored_values(graph)
    return json.dumps(values).encode() + files.tensor_bytes(tensors)


def trace_prompt(models: Models, traces: Traces, prompt: str, budget: int | None = BUDGET) -> Trace:
    """Trace a prompt, or return the trace that is kept of it; reports its phases to the listener of progress.

    Raises ConfigError if the prompt has too many tokens, and the errors of ``attribute``.
    """
    key = trace_key(models, prompt, budget)
    if (trace := traces.find(key)) is not None:
        return trace
    report_progress("attributing", 0, 1)
    graph = attribute(models.model, models.transcoder, prompt, max_feature_nodes=budget)
    source = None if models.source.is_embedded else models.source.transcoder
    graph = with_stored_confidence(graph, models.transcoder, source)
    trace = with_predictions(Trace(key=key, graph=graph), models)
    traces.keep(trace)
    return trace


def check_prompt(models: Models, prompt: str) -> list[str]:
    """Return the tokens of a prompt; raises ConfigError if it is empty or has too many, before anything is computed."""
    if not prompt.strip():
        raise ConfigError("The prompt is empty; type a text.")
    tokens = models.model.tokenize(prompt)
    if len(tokens) > LONGEST_PROMPT:
        raise ConfigError(f"The prompt has {len(tokens):,} tokens; the explorer traces {LONGEST_PROMPT} at most.")
    return models.model.token_strings(tokens)


def trace_key(models: Models, prompt: str, budget: int | None) -> str:
    """A hash of everything that a graph is computed from."""
    facts = [models.fingerprint, models.model.name, models.source.model, prompt, budget]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def with_predictions(trace: Trace, models: Models) -> Trace:
    """The trace with what both models predict after each of its tokens."""
    report_progress("predicting", 0, 1)
    rows = predictions(models.replacement, torch.tensor(trace.graph.info.tokens), _TOP)
    return replace(
        trace,
        predictions=tuple(
            {
                "token": token_label(row.token, 40),
                "model": [[token_label(likely.token, 40), round(likely.probability, 5)] for likely in row.original],
                "replacement": [
                    [token_label(likely.token, 40), round(likely.probability, 5)] for likely in row.replacement
                ],
                "kl": round(row.kl_divergence, 5),
            }
            for row in rows
        ),
    )


def read_predictions(rows: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Check predictions that a file holds; raises CheckpointError if they are not those of ``with_predictions``."""
    for row in rows:
        match row:
            case {"token": str(), "model": list(original), "replacement": list(replaced), "kl": int() | float() as kl}:
                likely = [*cast(list[Any], original), *cast(list[Any], replaced)]
            case _:
                raise CheckpointError("a prediction lacks a value")
        if not math.isfinite(kl) or not all(isinstance(e, list) and _is_likely(cast(list[Any], e)) for e in likely):
            raise CheckpointError("a prediction is not a token with its probability")
    return tuple(rows)


def _is_likely(pair: list[Any]) -> bool:
    return len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int | float) and math.isfinite(pair[1])


def file_key(content: bytes) -> str:
    """Key of a graph that was read from a file."""
    return "file" + hashlib.sha256(content).hexdigest()[:16]


def fits(trace: Trace, models: Models) -> bool:
    """Whether the models can have computed the graph, so that its features may be changed and looked up."""
    graph, model = trace.graph, models.model
    if graph.info.n_layers != model.n_layers or graph.info.model != model.name:
        return False
    tokens: Sequence[int] = graph.info.tokens
    return max(tokens, default=0) < model.vocab_size and not trace.name


def save_trace(trace: Trace, directory: Path) -> None:
    """Write a trace to a directory: all of its files or none of them.

    Raises ConfigError if files of other programs have their names.
    """
    files.check_artefact(directory, (_FACTS, *GRAPH_FILES), _FORMAT)
    with files.saving(directory) as stage:
        write_files(trace.graph, stage)
        content = {**_FORMAT.header(), "predictions": list(trace.predictions), "name": trace.name}
        files.write_json(stage(_FACTS), content)


def load_trace(directory: Path) -> Trace:
    """Read a trace, whose key is the name of its directory; raises CheckpointError on anything else."""

    def read(saved: files.Saved) -> Trace:
        match _FORMAT.read(saved(_FACTS), finite=True):
            case {"predictions": list(rows), "name": str(name)}:
                try:
                    predicted = read_predictions(cast(list[Any], rows))
                except CheckpointError as error:
                    raise CheckpointError(f"{directory / _FACTS} does not describe a trace ({error}).") from error
                return Trace(key=directory.name, graph=read_files(saved), predictions=predicted, name=name)
            case _:
                raise CheckpointError(f"{directory / _FACTS} does not describe a trace.")

    return files.read_saved(directory, _FACTS, read)

"""The explorer without its pages: its models, its traces, and its worker.

Nothing here waits for the model; ``jobs/`` has the work that needs it, which the worker does.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from open_clt.embedded import start_graph
from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import ConfigError, OpenCLTError
from open_clt.explorer.exports import File, read_upload
from open_clt.explorer.feature_list import listed, read_query
from open_clt.explorer.measurements import Measurements
from open_clt.explorer.models import Models, Source, load_models
from open_clt.explorer.session.session import Session
from open_clt.explorer.traces import (
    BUDGET,
    START,
    Trace,
    Traces,
)
from open_clt.explorer.views import Views, largest_activations
from open_clt.explorer.worker import Worker
from open_clt.features.feature_data import feature_data
from open_clt.features.records import FeatureRecord
from open_clt.graphs.graph import AttributionGraph
from open_clt.progress import report_progress
from open_clt.transcoders.feature import Feature
from open_clt.visualization.prompt_report.features import records_without_text

_HEADS = 12
"""Number of heads that the page lists of an edge."""
_LONGEST_CONTINUATION = 40
_MOST_FILES = 4
"""Number of exported files that are kept until a browser fetches them."""


@final
class Explorer:
    """Models, traces and the worker of one explorer; ``close`` ends its thread."""

    def __init__(
        self,
        source: Source,
        *,
        budget: int | None = BUDGET,
        cache: Path | None = None,
        text: HeldOutText | None = None,
        graph: Path | None = None,
        loading: AbstractContextManager[None] | None = None,
    ) -> None:
        """``loading`` is a context in which the models are loaded."""
        self.source = source
        self.measurements = Measurements(text or HeldOutText())
        self.budget = budget
        self.models: Models | None = None
        self.traces = Traces(cache)
        self.measured: dict[Feature, FeatureRecord] = {}
        self.views = Views()
        self.worker = Worker()
        self._files: OrderedDict[str, File] = OrderedDict()
        self.failed = ""
        self.start = self._first_graph(graph)
        self._around = nullcontext() if loading is None else loading
        self._loader = Worker()  # a thread of its own, so that graphs can be looked at while the models are loading
        self._loading = self._loader.submit("load", self._load)

    def close(self, wait: float | None = None) -> None:
        """Cancel all jobs, and wait until the threads have ended, or at most this number of seconds for each."""
        self.worker.close(wait)
        self._loader.close(wait)

    def status(self) -> dict[str, Any]:
        """What the page shows of the models and the jobs, as plain values."""
        models = self.models
        config = None if models is None else models.transcoder.config
        return {
            "model": self.source.model,
            "transcoder": self.source.transcoder or self.source.model,
            "ready": models is not None,
            "failed": self.failed,
            "shape": None if config is None else [config.n_layers, config.n_features],
            "layers": [] if config is None else list(config.model_layers),
            "fingerprint": None if models is None else models.fingerprint,
            "has_records": models is not None and models.records is not None,
            "start": self.start,
            "budget": self.budget,
            "jobs": [job.status() for job in (*self._loader.running(), *self.worker.running())],
        }

    def loaded(self) -> Models:
        """The models; raises ConfigError while they are loading or if they cannot be loaded."""
        if self.models is None:
            raise ConfigError(self.failed or "The models are still loading; try again in a moment.")
        return self.models

    def wait_for_models(self) -> Models:
        """The models, for a job in the worker, which shows how far they are loaded until they are there."""
        while not self._loading.finished.wait(0.05):
            report_progress(self._loading.phase, self._loading.done, self._loading.total)
        return self.loaded()

    def trace_of(self, key: object) -> Trace:
        """The trace with a key; raises ConfigError if it is not kept any more."""
        trace = self.traces.find(key) if isinstance(key, str) else None
        if trace is None:
            raise ConfigError("The graph is not kept any more; trace the prompt again.")
        return trace

    def keep_file(self, made: File) -> str:
        """Keep an exported file until a browser fetches it; returns its name for ``file``."""
        token = secrets.token_hex(8)
        self._files[token] = made
        while len(self._files) > _MOST_FILES:
            self._files.popitem(last=False)
        return token

    def file(self, token: str) -> File | None:
        """A file that an export has made."""
        return self._files.get(token)

    def opened(self, name: str, content: bytes) -> Session:
        """The session in a file; raises ConfigError if it was made with another transcoder."""
        saved = read_upload(name, content)
        if saved.transcoder and saved.transcoder != self.loaded().fingerprint:
            raise ConfigError(
                f"{name[:80]!r} was made with another transcoder ({saved.transcoder}) than this explorer's "
                f"({self.loaded().fingerprint}); start the explorer with that one."
            )
        return replace(saved.session, graph=self.traces.keep_foreign(saved.trace).key)

    def feature(self, name: str) -> dict[str, Any]:
        """The record of a feature; without one, the output tokens that its decoders raise and lower."""
        models, feature = self.loaded(), Feature.parse(name)
        self.check_feature(feature)
        record = self.measured.get(feature)
        if record is None and models.records is not None:
            record = models.records.record(feature)
        if record is None:
            record = records_without_text(models.model, models.transcoder, [feature])[0]
        measured = models.records is not None or feature in self.measured
        return {**feature_data(record), "feature": str(feature), "measured": measured}

    def check_feature(self, feature: Feature) -> None:
        """Raise ConfigError if the transcoder does not have a feature."""
        config = self.loaded().transcoder.config
        if feature.layer not in config.model_layers or not 0 <= feature.index < config.n_features:
            raise ConfigError(
                f"The transcoder does not have feature {feature}; its layers {config.layer_words} have "
                f"{config.n_features} features each."
            )

    def features(self, values: Mapping[str, str], session: Session) -> dict[str, Any]:
        """A page of the list of features; ``values`` are those of an address (``feature_list.read_query``)."""
        query, rows = read_query(values), self.loaded().rows
        among: dict[Feature, float] | None = None
        if values.get("here") == "1":
            graph = self.trace_of(session.graph).graph
            among = largest_activations(graph)
        return listed(rows, query, session.feature_labels, among)

    def _first_graph(self, directory: Path | None) -> str | None:
        """Keep the graph that is shown first, and return its key; None if there is none."""
        if directory is not None:
            read = Trace(key="", graph=AttributionGraph.load(directory), name=directory.resolve().name or "graph")
            return self.traces.keep_foreign(read).key
        if not self.source.is_embedded:
            return None
        self.traces.hold(Trace(key=START, graph=start_graph(), automatic=True))
        return START

    def _load(self) -> None:
        try:
            with self._around:
                self.models = load_models(self.source)
        except OpenCLTError as error:
            self.failed = str(error)
            raise

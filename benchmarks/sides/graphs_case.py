"""One side of the benchmark of whole graphs: the graphs of one version of the code, in its own process.

    python graphs_case.py FOLDER cpu TREE      the package `open_clt` is imported from the directory TREE

The first request says which model is used: the embedded one, or a random one of the given shape in FOLDER.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[3])

import torch
from attribution_inputs import Shape, make_inputs
from attribution_process import measured, serve
from safetensors.torch import save_file

from open_clt.attribution.attribute import attribute
from open_clt.attribution.sources import find_sources
from open_clt.embedded import TRANSCODER_DIRECTORY
from open_clt.embedded.corpus import generate_texts
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.visualization.graph.page_data import graph_data

TEXT_SEED = 500_000_003
_EDGE_BYTES = 12
"""Bytes of an edge while a whole graph is put together, at most: 4 in the computed rows, and 8 in the graph."""


class Bench:
    """A model and its transcoder, and the graphs of the first tokens of one prompt."""

    def __init__(self, model: LanguageModel, transcoder: Any, prompt: list[int]) -> None:
        self.model, self.transcoder, self.prompt = model, transcoder, prompt

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compute, prune and score one graph, and with ``paint`` lay out its picture as pages do."""
        if request["kind"] == "edges":
            return self.edges(request["tokens"])
        seconds: dict[str, float] = {}
        prompt = self.prompt[: request["tokens"]]

        def timed(name: str, function: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            result = function()
            seconds[f"{name}_seconds"] = time.perf_counter() - started
            return result

        def graph_and_scores() -> tuple[Any, ...]:
            started = time.process_time()
            graph = timed("attribute", lambda: attribute(self.model, self.transcoder, prompt, **settings))
            pruned = timed("prune", graph.prune)
            scores = timed("scores", lambda: [*graph.scores(), *pruned.scores()])
            if request.get("paint"):
                timed("paint", lambda: graph_data(pruned))
            seconds["cpu_seconds"] = time.process_time() - started
            return graph, pruned, scores

        settings = {"max_feature_nodes": request["budget"]}
        (graph, pruned, scores), run = measured(graph_and_scores, self.model.device)
        if request.get("save"):
            columns = dict(zip(("target", "source", "weight"), graph.edges, strict=True))
            save_file(columns, request["save"])
        sizes = {"active": graph.info.n_active_features, "edges": graph.n_edges, "ids": pruned.ids()}
        return {**run._asdict(), **seconds, **sizes, "scores": scores}

    @torch.no_grad()
    def edges(self, tokens: int) -> dict[str, Any]:
        """Count the edges between the features of a whole graph, without computing them."""
        path = read_linear_path(
            self.model, torch.tensor(self.prompt[:tokens]), self.transcoder.config.input_hook, "hook_mlp_out"
        )
        sources = find_sources(path, self.transcoder)
        below = (sources.starts - sources.starts[:, :1]).cumsum(0)
        edges = int(below[sources.features.position, sources.features.layer].sum())
        return {"active": len(sources.features.value), "edges": edges, "mb": _EDGE_BYTES * edges / 1e6}


def make(request: dict[str, Any]) -> Bench:
    """Make the model and the transcoder of the first request."""
    if request["kind"] == "random":
        folder = Path(sys.argv[1])
        prompt = make_inputs(folder, Shape(**request["shape"]))
        return Bench(load_language_model(folder / "gpt2"), load_transcoder(folder / "transcoder"), prompt)
    model = load_language_model("embedded")
    text = " ".join(generate_texts(40, seed=TEXT_SEED))
    prompt = [int(model.tokenize("a")[0]), *model.token_ids([text])[0]]
    return Bench(model, load_transcoder(TRANSCODER_DIRECTORY), prompt)


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that answers requests: the first one makes the model, the others use it."""
    bench: Bench | None = None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal bench
        if bench is not None:
            return bench.answer(request)
        bench = make(request)
        return {"context": bench.model.context_length}

    return answer


if __name__ == "__main__":
    serve(load)

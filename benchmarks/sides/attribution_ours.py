"""OpenCLT's side of the attribution benchmark: its graphs, their rows by the slow twin, and the least FLOP of a row."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attribution_inputs import Shape, make_inputs
from attribution_process import measured, serve
from safetensors.torch import save_file
from torch import Tensor

from open_clt.attribution.attribute import AttributionSettings, attribute
from open_clt.attribution.sources import find_sources
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeId, NodeKind
from open_clt.language.language_model import load_language_model
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.load import load_transcoder

sys.path.append(str(Path(__file__).parents[2]))
from tests.reference.autograd_attribution import SlowAttribution, SlowRow


class Bench:
    """The model and the transcoder, and the answers to requests about them."""

    def __init__(self, folder: Path, device: torch.device, *, stored: bool) -> None:
        self.device = device
        self.model = load_language_model(folder / "gpt2", device=device)
        limit = 1 if stored else 2**40
        transcoder = load_transcoder(folder / "transcoder", device=device, memory_limit=limit)
        assert isinstance(transcoder, CrossLayerTranscoder)
        self.transcoder = transcoder

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; its ``kind`` says what is computed."""
        if request["kind"] == "rate":
            return {"flop_per_second": self.matmul_rate()}
        prompt, budget = request["prompt"], request["budget"]
        if request["kind"] == "flop":
            return {"flop": self.flop(prompt, self.graph(prompt, budget, None))}
        if request["kind"] == "twin":
            return self.twin(prompt, self.graph(prompt, budget, None), request["rows"])
        graph, run = measured(lambda: self.graph(prompt, budget, request["batch_size"]), self.device)
        features = graph.of_kind(NodeKind.FEATURE)
        if request["save"]:
            nodes = graph.nodes
            tensors = {
                "features": torch.stack([nodes.layer, nodes.position, nodes.index], dim=1)[features],
                "logits": nodes.index[graph.of_kind(NodeKind.LOGIT)],
                "adjacency": graph.adjacency(),
            }
            save_file(tensors, request["save"])
        return {**run._asdict(), "active": graph.info.n_active_features, "edges": graph.n_edges}

    def graph(self, prompt: list[int], budget: int | None, batch_size: int | None) -> AttributionGraph:
        """A graph without the kinds of nodes that circuit-tracer does not have."""
        settings: AttributionSettings = {"max_feature_nodes": budget, "compatible": True}
        if batch_size is not None:
            settings["batch_size"] = batch_size
        return attribute(self.model, self.transcoder, prompt, **settings)

    def twin(self, prompt: list[int], graph: AttributionGraph, count: int) -> dict[str, Any]:
        """Time the slow twin on ``count`` of the rows, and compare these rows with the graph's."""
        slow = SlowAttribution(self.model, self.transcoder, torch.tensor(prompt, device=self.device), first=1)
        rows = (~graph.nodes.total.isnan()).nonzero().flatten()
        sample = rows[torch.linspace(0, len(rows) - 1, count).long()].tolist()
        started = time.perf_counter()
        slow_rows = [slow_row(slow, graph.node(row)) for row in sample]
        seconds = time.perf_counter() - started
        slow.close()
        adjacency = graph.adjacency()
        pairs = zip(sample, slow_rows, strict=True)
        largest = max(float((adjacency[row] - in_graph(expected, graph)).abs().max()) for row, expected in pairs)
        return {"seconds_a_row": seconds / count, "rows": len(rows), "max_abs_diff": largest}

    def flop(self, prompt: list[int], graph: AttributionGraph) -> float:
        """FLOP that the adjoint needs for a graph's rows in a GPT-2, in which every head has its own values."""
        tokens = torch.tensor(prompt, device=self.device)
        sources = find_sources(read_linear_path(self.model, tokens, "hook_resid_mid"), self.transcoder)
        active = (sources.starts[:, 1:] - sources.starts[:, :1]).cumsum(0)  # (position, layer)
        rows = ~graph.nodes.total.isnan()
        layers_and_positions = zip(graph.nodes.layer[rows].tolist(), graph.nodes.position[rows].tolist(), strict=True)
        width, heads = self.model.d_model, self.model.n_heads
        return float(sum(row_flop(layer, position, active, width, heads) for layer, position in layers_and_positions))

    def matmul_rate(self) -> float:
        """FLOP per second of one large matrix product of the model's width."""
        rows, width = 4096, self.model.d_model
        left, right = torch.randn(rows, width, device=self.device), torch.randn(width, width, device=self.device)
        seconds = [measured(lambda: _multiply(left, right), self.device)[1].seconds for _ in range(15)]
        return 10 * 2 * rows * width * width / statistics.median(seconds)


def slow_row(slow: SlowAttribution, node: Node) -> SlowRow:
    """The row of a feature or an output, computed by autograd."""
    if node.kind is NodeKind.LOGIT:
        return slow.logit_row(node.index, node.position)
    return slow.feature_row(node.layer, node.position, node.index)


def in_graph(expected: SlowRow, graph: AttributionGraph) -> Tensor:
    """A row of the slow twin in the columns of a graph; features that the graph does not have count as errors."""
    columns = {node: column for column, node in enumerate(graph.nodes.ids())}
    weights, errors = torch.zeros(graph.n_nodes), expected.errors.cpu().clone()
    for (layer, position, index), weight in expected.features.items():
        if (node := NodeId.of(NodeKind.FEATURE, layer, position, index)) in columns:
            weights[columns[node]] = weight
        else:
            errors[layer, position] += weight
    weights[graph.of_kind(NodeKind.ERROR)] = errors.flatten()
    weights[graph.of_kind(NodeKind.EMBEDDING)] = expected.embeddings.cpu()
    return weights


def row_flop(level: int, position: int, active: Tensor, width: int, heads: int) -> int:
    """Least FLOP of one row, without padding and without the pairs of positions that the causal mask removes.

    The first attention on the way down starts from one position, so it costs two products of a vector with a matrix,
    and a weighted copy of what each head passes on; the last attention stops at the values. ``level`` is the layer of a
    feature, and the number of layers for an output, which reads the last MLP's output at its own position only.
    ``active`` counts the active features up to a position and a layer.
    """
    layers, positions = active.shape[1], position + 1
    attentions, pairs, matrix = min(level + 1, layers), positions * (positions + 1) // 2, 2 * width * width
    features = int(active[position, : min(level, layers - 1)].sum())
    if level == layers:
        features += int(active[position, -1]) - (int(active[position - 1, -1]) if position else 0)
    total = 2 * width * features + 6 * width * positions * attentions  # features; errors and two kinds of biases
    total += matrix + 6 * width * positions  # the first attention, from one position; embeddings
    if attentions > 1:
        total += matrix + 2 * positions * heads * width  # what the heads of the first attention pass on
        total += positions * matrix + 2 * pairs * width  # the last attention, down to its values
        total += (attentions - 2) * (2 * positions * matrix + 2 * pairs * width)
    return total


def _multiply(left: Tensor, right: Tensor) -> None:
    for _ in range(10):
        torch.matmul(left, right)


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that answers requests: the first one makes the model and the transcoder, others use them."""
    torch.set_float32_matmul_precision("highest")
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    bench: Bench | None = None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal bench
        if bench is not None:
            return bench.answer(request)
        prompt = make_inputs(folder, Shape(**{name: value for name, value in request.items() if name != "kind"}))
        bench = Bench(folder, device, stored="stored" in sys.argv[3:])
        return {"prompt": prompt}

    return answer


if __name__ == "__main__":
    serve(load)

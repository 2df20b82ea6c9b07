"""OpenCLT's side of the attribution benchmark: its graphs, the slow twin of its rows, and the floor under its time."""

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

from open_clt.attribution.attribute import attribute
from open_clt.attribution.sources import find_sources
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeId, NodeKind
from open_clt.language.language_model import load_language_model
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer

sys.path.append(str(Path(__file__).parent.parent))
from tests.reference.autograd_attribution import SlowAttribution, SlowRow


class Bench:
    """The model and transcoder, and what can be asked about them."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.model = load_language_model(folder / "gpt2", device=device)
        self.transcoder = load_circuit_tracer(folder / "transcoder").to(device)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
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
        """A graph without the kinds of nodes that circuit-tracer lacks."""
        batch = {} if batch_size is None else {"batch_size": batch_size}
        return attribute(self.model, self.transcoder, prompt, max_feature_nodes=budget, compatible=True, **batch)

    def twin(self, prompt: list[int], graph: AttributionGraph, count: int) -> dict[str, Any]:
        """Time the slow twin on some of the rows, and compare those."""
        slow = SlowAttribution(self.model, self.transcoder, torch.tensor(prompt, device=self.device), first=1)
        rows = (~graph.nodes.total.isnan()).nonzero().flatten()
        chosen = rows[torch.linspace(0, len(rows) - 1, count).long()].tolist()
        started = time.perf_counter()
        expected = [slow_row(slow, graph.node(row)) for row in chosen]
        seconds = time.perf_counter() - started
        slow.close()
        adjacency = graph.adjacency()
        pairs = zip(chosen, expected, strict=True)
        worst = max(float((adjacency[row] - in_graph(found, graph)).abs().max()) for row, found in pairs)
        return {"seconds_a_row": seconds / count, "rows": len(rows), "max_abs_diff": worst}

    def flop(self, prompt: list[int], graph: AttributionGraph) -> float:
        """FLOP that the adjoint needs for a graph's rows; for GPT-2, whose heads have values of their own."""
        tokens = torch.tensor(prompt, device=self.device)
        sources = find_sources(read_linear_path(self.model, tokens, "hook_resid_mid"), self.transcoder)
        active = (sources.starts[:, 1:] - sources.starts[:, :1]).cumsum(0)  # (position, layer): up to both
        rows = ~graph.nodes.total.isnan()
        places = zip(graph.nodes.layer[rows].tolist(), graph.nodes.position[rows].tolist(), strict=True)
        return float(sum(row_flop(*place, active, self.model.d_model, self.model.n_heads) for place in places))

    def matmul_rate(self) -> float:
        """FLOP a second of one large matrix product of the model's width."""
        rows, width = 4096, self.model.d_model
        left, right = torch.randn(rows, width, device=self.device), torch.randn(width, width, device=self.device)
        seconds = [measured(lambda: _multiply(left, right), self.device)[1].seconds for _ in range(15)]
        return 10 * 2 * rows * width * width / statistics.median(seconds)


def slow_row(slow: SlowAttribution, node: Node) -> SlowRow:
    """A feature's or an output's row, by autograd."""
    if node.kind is NodeKind.LOGIT:
        return slow.logit_row(node.index, node.position)
    return slow.feature_row(node.layer, node.position, node.index)


def in_graph(found: SlowRow, graph: AttributionGraph) -> Tensor:
    """A row as a graph with a budget has it: features without a row of their own count as errors."""
    number = {node: row for row, node in enumerate(graph.nodes.ids())}
    row, errors = torch.zeros(graph.n_nodes), found.errors.cpu().clone()
    for (layer, position, index), weight in found.features.items():
        if (node := NodeId.of(NodeKind.FEATURE, layer, position, index)) in number:
            row[number[node]] = weight
        else:
            errors[layer, position] += weight
    row[graph.of_kind(NodeKind.ERROR)] = errors.flatten()
    row[graph.of_kind(NodeKind.EMBEDDING)] = found.embeddings.cpu()
    return row


def row_flop(level: int, position: int, active: Tensor, width: int, heads: int) -> int:
    """Least FLOP of one row: no position that is padding, no pair that the causal mask leaves out.

    Its first attention starts from one position, so it costs two products of a vector with a matrix, and then shares of
    what each head hands on; the last one stops at the values. ``level`` is the number of layers for outputs, which meet
    the last MLP's output at their own position alone; ``active`` counts features up to a position and layer.
    """
    layers, seen = active.shape[1], position + 1
    attentions, pairs, matrix = min(level + 1, layers), seen * (seen + 1) // 2, 2 * width * width
    met = int(active[position, : min(level, layers - 1)].sum())
    if level == layers:
        met += int(active[position, -1]) - (int(active[position - 1, -1]) if position else 0)
    total = 2 * width * met + 6 * width * seen * attentions  # features; errors and two kinds of biases
    total += matrix + 6 * width * seen  # the first attention, from one position; embeddings
    if attentions > 1:
        total += matrix + 2 * seen * heads * width  # what its heads hand on
        total += seen * matrix + 2 * pairs * width  # the last attention, to its values
        total += (attentions - 2) * (2 * seen * matrix + 2 * pairs * width)
    return total


def _multiply(left: Tensor, right: Tensor) -> None:
    for _ in range(10):
        left @ right


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The first request says what model and transcoder to make; the others are about them."""
    torch.set_float32_matmul_precision("highest")
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    bench: Bench | None = None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal bench
        if bench is not None:
            return bench.answer(request)
        prompt = make_inputs(folder, Shape(**{name: value for name, value in request.items() if name != "kind"}))
        bench = Bench(folder, device)
        return {"prompt": prompt}

    return answer


if __name__ == "__main__":
    serve(load)

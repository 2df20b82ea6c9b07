"""Effects of changed features on the nodes of a graph: those that the graph predicts, and those that a run measures."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import FeaturePreactivation, LogitDifference
from open_clt.replacement.interventions.intervene import InterventionRecord
from open_clt.transcoders.transcoder import Transcoder


def predicted_changes(
    graph: AttributionGraph, ablated: Int[Tensor, "ablation"], *, paths: bool = True
) -> Float[Tensor, "ablation node"]:
    """The change of every node's total (pre-activation or logit) that a graph predicts for each ablated node.

    Without ``paths``, the change is minus the edge from the ablated node. With paths, each feature on a path passes on
    its relative change, which assumes that features neither become active nor become inactive.
    """
    relative = torch.zeros(len(ablated), graph.n_nodes, dtype=torch.double)
    relative[torch.arange(len(ablated)), ablated] = -1
    return predicted_effects(graph, relative, paths=paths)


def predicted_effects(
    graph: AttributionGraph, relative: Float[Tensor, "run node"], *, paths: bool = True
) -> Float[Tensor, "run node"]:
    """The change of every node's total that a graph predicts for each run, in which several nodes may be changed.

    ``relative`` holds the factor of each node's activation, less 1: -1 ablates a node, and 0 leaves it alone. With
    ``paths``, a changed feature that another one reaches is multiplied by its factor after it was reached.
    """
    nodes, edges = graph.nodes, graph.edges
    start = relative.double()
    relative, change = start.clone(), torch.zeros_like(start)
    passes_on = graph.of_kind(NodeKind.FEATURE) & paths
    row_layers = nodes.layer[edges.rows]
    for layer in row_layers.unique().tolist():
        into_layer = (row_layers == layer).nonzero().flatten()
        for chunk in edges.chunks(into_layer.numpy()):
            changes = chunk.matrix(graph.n_nodes, signed=True) @ relative.numpy().T
            change[:, edges.rows[torch.from_numpy(chunk.rows)]] = torch.from_numpy(changes.T)
        reached = edges.rows[into_layer]
        reached = reached[passes_on[reached]]
        relative[:, reached] += (1 + start[:, reached]) * change[:, reached] / nodes.value[reached]
    return change.float()


def measured_changes(graph: AttributionGraph, transcoder: Transcoder, run: InterventionRecord) -> Float[Tensor, "node"]:
    """Changes of each node's total: pre-activation, logit minus the mean logit, or target; NaN for other nodes."""
    nodes, measured = graph.nodes, torch.full((graph.n_nodes,), torch.nan)
    positions = nodes.position[graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET)].unique()
    change = (run.after.logits_at(positions) - run.before.logits_at(positions)).float().cpu()
    rows, logits = torch.searchsorted(positions, nodes.position), graph.of_kind(NodeKind.LOGIT)
    measured[logits] = (change - change.mean(1, keepdim=True))[rows[logits], nodes.index[logits]]
    for layer in range(graph.info.n_layers):
        in_layer = graph.of_kind(NodeKind.FEATURE) & (nodes.layer == layer)
        if bool(in_layer.any()):
            changes = run.preactivation_change(transcoder, layer, nodes.index[in_layer].to(transcoder.device))
            measured[in_layer] = changes.float().cpu()[nodes.position[in_layer], torch.arange(int(in_layer.sum()))]
    for node_index in graph.of_kind(NodeKind.TARGET).nonzero().flatten().tolist():
        match graph.info.settings.target(int(nodes.index[node_index])):
            case LogitDifference(positive=int(positive), negative=int(negative)):
                row = change[rows[node_index]]
                measured[node_index] = row[positive] - row[negative]
            case FeaturePreactivation(layer=layer, feature=feature, position=position):
                index = torch.tensor([feature], device=transcoder.device)
                measured[node_index] = float(run.preactivation_change(transcoder, layer, index)[position])
            case _:
                pass  # a run does not record the stream that a direction reads
    measured[nodes.total.isnan()] = torch.nan  # an unexplored feature has no row to compare with
    return measured

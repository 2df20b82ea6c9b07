"""Views of attribution graphs, of the comparison with interventions, and of interventions."""

from __future__ import annotations

from open_clt.errors import OpenCLTError
from open_clt.evaluation.faithfulness_report import Faithfulness
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.info import PruningSettings
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import GraphComparison
from open_clt.graphs.supernodes import GroupedGraph
from open_clt.replacement.interventions.intervene import InterventionRecord
from open_clt.transcoders.feature import Feature
from open_clt.visualization.graph.figure import visualize_attribution_graph
from open_clt.visualization.notebook.html import (
    Markup,
    bar,
    card,
    escaped,
    facts,
    folded,
    joined,
    picture,
    quiet,
    table,
    token,
)

_NODES, _EDGES = 24, 70
"""Largest numbers of nodes and edges of a small picture."""
_LARGEST = 1_000_000
"""Number of edges above which a view is without influence and picture, which would take more than a second."""
_CHANGES = 8
"""Largest number of changed activations that are listed."""


def graph_view(graph: AttributionGraph) -> str:
    """A small picture of a graph, its outputs and scores, and how far its rows add up."""
    return card(_title("Attribution graph", graph), _graph_facts(graph), _small(graph), note=_size(graph))


def grouped_view(grouped: GroupedGraph) -> str:
    """A small picture of a graph with supernodes, and the members of each supernode."""
    members = [group for group in grouped.groups if len(group.members) > 1]
    rows = [(group.label, f"{len(group.members)} nodes", ", ".join(group.members[:8])) for group in members[:30]]
    listed = folded(f"{len(members)} supernodes", table(("supernode", "size", "members"), rows))
    title = _title("Grouped attribution graph", grouped.graph)
    return card(title, _graph_facts(grouped.graph), _small(grouped), listed, note=_size(grouped.graph))


def faithfulness_view(measured: Faithfulness) -> str:
    """How well a graph predicts the effects of ablations."""
    agreement = measured.agreement
    effects = [
        (name, pairs.spearman, pairs.slope, len(pairs.predicted))
        for name, pairs in (("direct (edges)", measured.direct), ("total (paths)", measured.total))
    ]
    rows = [(str(row.distance), row.cosine, row.normalised_mse, row.features) for row in measured.perturbations]
    same = "the same next token" if agreement.same_top else "another next token"
    return card(
        "Faithfulness",
        table(("effects", "Spearman", "slope (1 is ideal)", "pairs"), effects),
        facts(
            [
                ("influence and KL", f"Spearman {measured.influence.spearman:.3f}"),
                ("replacement", f"{same}, KL {agreement.kl_divergence:.3f} nats"),
                ("same token along the prompt", f"{agreement.top1_agreement:.0%}"),
            ]
        ),
        table(("blocks later", "cosine of the changes", "normalised MSE", "ablations"), rows) if rows else "",
        note=f"{len(measured.features)} features ablated one at a time",
    )


def graph_comparison_view(comparison: GraphComparison) -> str:
    """How much two graphs have in common."""
    rows = [
        ("nodes in common", f"{len(comparison.shared_nodes):,}, {comparison.node_overlap:.1%}"),
        ("only in the first", f"{len(comparison.nodes_only_first):,}"),
        ("only in the second", f"{len(comparison.nodes_only_second):,}"),
        ("edges in common", f"{len(comparison.shared_edges):,}, {comparison.edge_overlap:.1%}"),
    ]
    changed = [(pair.source, pair.target, pair.first, pair.second) for pair in comparison.shared_edges[:_CHANGES]]
    listed = folded("edges that differ most", table(("source", "target", "first", "second"), changed))
    return card("Comparison of two graphs", facts(rows), listed if changed else "")


def intervention_view(record: InterventionRecord) -> str:
    """The predictions before and after interventions side by side, and the activations that changed most."""
    largest = max([entry.probability for entry in (*record.top_before, *record.top_after)], default=1.0)
    columns = [
        [(token(entry.token), bar(entry.probability / largest, f"{entry.probability:.1%}")) for entry in top]
        for top in (record.top_before, record.top_after)
    ]
    blank = (Markup(""), Markup(""))
    longest = max(map(len, columns))
    rows = zip(*([*column, *[blank] * (longest - len(column))] for column in columns), strict=True)
    changes = [
        (str(Feature(layer, feature)), str(position), before, after)
        for layer, position, feature, before, after in zip(
            *(column[:_CHANGES].tolist() for column in record.changes), strict=True
        )
    ]
    changed = table(("feature", "position", "before", "after"), changes)
    return card(
        ", ".join(intervention.describe() for intervention in record.interventions),
        table(("before", "", "after", ""), [(*before, *after) for before, after in rows]),
        folded(f"{record.changes.layer.shape[0]:,} activations changed", changed),
        note=f"KL {record.kl_divergence:.4f} nats",
    )


def _title(kind: str, graph: AttributionGraph) -> Markup:
    return joined([kind, " of “", graph.info.prompt, "”"])


def _size(graph: AttributionGraph) -> str:
    return f"{graph.info.model}, {graph.n_nodes:,} nodes, {graph.n_edges:,} edges"


def _graph_facts(graph: AttributionGraph) -> Markup:
    is_output = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET)
    weights = graph.nodes.weight[is_output].tolist()
    outputs = list(zip(graph.info.target_names, weights, strict=True))[:10]
    logits = bool(graph.of_kind(NodeKind.LOGIT).any())
    shown = [joined([token(name), f" {weight:.1%}" if logits else ""]) for name, weight in outputs]
    rows: list[tuple[str, object]] = [("outputs", joined(shown, "&ensp;"))]
    if graph.n_edges <= _LARGEST:
        scores = graph.scores()
        rows.append(("scores", f"replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}"))
    rows.append(("check", _check(graph)))
    pruning = graph.info.settings.pruning
    if pruning is not None:
        rows.append(("pruned to", _pruning(pruning)))
    return facts(rows)


def _pruning(pruning: PruningSettings) -> str:
    """The shares of the influence that pruning left, as far as they are known."""
    shares = (("nodes", pruning.node_threshold), ("edges", pruning.edge_threshold))
    return ", ".join(f"{share:.0%} of the influence of {name}" for name, share in shares if share is not None)


def _check(graph: AttributionGraph) -> str:
    """Whether the rows of a graph add up to their totals."""
    try:
        if graph.n_edges > 10 * _LARGEST:
            return "not computed for a graph of this size; call check()"
        return graph.missing() or f"rows add up, to {graph.check().relative_to_row:.1g} of a row"
    except OpenCLTError as error:
        return str(error)


def _small(graph: AttributionGraph | GroupedGraph) -> Markup:
    """A small picture of a graph, or the reason why there is none."""
    edges = graph.edges.weight.shape[0]
    if edges > _LARGEST:
        return quiet(f"The graph has {edges:,} edges, too many for a picture here; call prune() first.")
    try:
        figure = visualize_attribution_graph(graph, max_nodes=_NODES, max_edges=_EDGES, title="")
    except OpenCLTError as error:
        return escaped(str(error))
    return picture(figure, "The most influential nodes of the graph")

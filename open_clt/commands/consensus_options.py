"""Options of ``open-clt attribute`` for the consensus of several prompts, and the table that it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from open_clt.commands.options import AddOption
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.data.prompts import PromptSet
    from open_clt.graphs.graph import AttributionGraph

_MOST_ROWS = 20
"""Largest number of nodes in the table."""


def add_consensus_options(option: AddOption) -> None:
    """Add the option that averages the graphs."""
    option(
        "--consensus",
        action="store_true",
        help="Average the pruned graphs of all prompts into one graph, with the frequency of each node and edge.",
    )


def check_consensus_options(arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Raise ConfigError if the graphs of the prompts cannot be averaged."""
    if arguments.consensus and len(set(prompts)) < 2:
        raise ConfigError("--consensus needs at least two different prompts; give more with --prompt or --prompts.")
    if arguments.consensus and arguments.no_faithfulness:
        raise ConfigError("--no-faithfulness is given, but --consensus makes no such check; remove one of the two.")


def consensus_of(
    arguments: argparse.Namespace, graphs: Sequence[AttributionGraph], prompts: PromptSet
) -> AttributionGraph:
    """Return the consensus of the pruned graphs."""
    from open_clt.graphs.consensus import consensus

    pruned = [graph.prune(arguments.threshold, arguments.edge_threshold) for graph in graphs]
    return consensus(pruned, template=prompts.templates or None)


def consensus_lines(graph: AttributionGraph) -> Iterator[str]:
    """Yield lines with the size of a consensus and of its core, its stability, and the core's features."""
    from open_clt.features.labelling.automatic import in_brief
    from open_clt.graphs.consensus import core
    from open_clt.graphs.consensus_table import CORE
    from open_clt.graphs.nodes import NodeKind

    table, inner = graph.consensus, core(graph)
    if table is None or inner.consensus is None:
        return
    yield table.summary()
    yield f"answers: {', '.join(dict.fromkeys(answer.strip() for answer in table.answers))}"
    yield f"{graph.n_nodes} nodes, {graph.n_edges} edges; {inner.n_nodes} and {inner.n_edges} in at least {CORE:.0%}"
    lowest, worst = min(zip(table.stability, table.prompts, strict=True))
    yield f"stability of a graph: {lowest:.2f} ({worst!r}) to {max(table.stability):.2f}"
    rows = inner.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()
    rows.sort(key=lambda row: -float(inner.consensus.influence[row]) if inner.consensus else 0.0)
    shown = rows[:_MOST_ROWS]
    yield f"{len(shown)} of {len(rows)} features of the core, by influence (interval of the mean):"
    for row in shown:
        node, columns = inner.node(row), inner.consensus
        interval = f"{float(columns.low[row]):.3f} to {float(columns.high[row]):.3f}"
        confidence = "" if node.confidence is None else f"  confidence {node.confidence:4.0%}"
        place = f"{inner.info.token_strings[node.position].strip():<14} {node.id:<11}"
        numbers = f"{float(columns.frequency[row]):4.0%}  {float(columns.influence[row]):.3f} ({interval})"
        yield f"  {place} {numbers}{confidence}  {in_brief(node.label)}"

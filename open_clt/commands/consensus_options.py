"""Options of ``open-clt attribute`` for the consensus of several prompts, and the table that it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from open_clt.commands.options import AddOption, own_source
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.data.prompts import PromptSet
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.replacement.model import ReplacementModel

_MOST_ROWS = 20
"""Largest number of nodes in the table."""


def add_consensus_options(option: AddOption) -> None:
    """Add the option that averages the graphs, and the one that calibrates confidence."""
    option(
        "--consensus",
        action="store_true",
        help="Average the pruned graphs of all prompts into one graph, with the frequency of each node and edge.",
    )

    option(
        "--calibrate",
        action="store_true",
        help="With --consensus, ablate nodes and cut edges of the graphs, fit the probability that the answer changes "
        "as predicted, and store it with the transcoder. Later graphs have it as confidence.",
    )


def check_consensus_options(arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
    """Raise ConfigError if the graphs of the prompts cannot be averaged, or an option is not used."""
    if arguments.calibrate and not arguments.consensus:
        raise ConfigError("--calibrate needs the frequencies of a consensus; add --consensus.")
    if arguments.consensus and len(set(prompts)) < 2:
        raise ConfigError("--consensus needs at least two different prompts; give more with --prompt or --prompts.")
    if arguments.consensus and arguments.no_faithfulness:
        raise ConfigError("--no-faithfulness is given, but --consensus makes no such check; remove one of the two.")


def consensus_of(
    arguments: argparse.Namespace,
    graphs: Sequence[AttributionGraph],
    prompts: PromptSet,
    replacement: ReplacementModel,
) -> AttributionGraph:
    """Return the consensus of the pruned graphs, with the confidence of its features if there is a calibration."""
    from open_clt.evaluation.calibration import with_stored_confidence
    from open_clt.graphs.consensus import consensus

    template = prompts.templates or None
    pruned = [graph.prune(arguments.node_threshold, arguments.edge_threshold) for graph in graphs]
    averaged = consensus(pruned, template=template)
    if arguments.calibrate:
        _calibrate(arguments, graphs, template, replacement)
    return with_stored_confidence(averaged, replacement.transcoder, own_source(arguments))


def _calibrate(
    arguments: argparse.Namespace,
    graphs: Sequence[AttributionGraph],
    template: Sequence[str] | None,
    replacement: ReplacementModel,
) -> None:
    """Fit a calibration on the graphs, store it, and print where."""
    from open_clt.evaluation.calibration import fit_calibration, save_calibration
    from open_clt.evaluation.trials import trials
    from open_clt.features.places import place_for_records

    made = trials(
        graphs,
        replacement,
        template=template,
        per_graph=arguments.max_features,
        node_threshold=arguments.node_threshold,
        edge_threshold=arguments.edge_threshold,
    )
    calibration = fit_calibration(made, replacement.transcoder)
    path = save_calibration(calibration, place_for_records(own_source(arguments), replacement.transcoder))
    share = sum(trial.as_predicted for trial in made) / len(made)
    print(f"calibration: {len(made)} interventions, {share:.0%} as predicted: {path}")


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

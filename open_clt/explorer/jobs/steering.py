"""Jobs of the steering page: the effects of changed features, beside those that the graph predicts for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.attribution.sources import attributable
from open_clt.config.json import to_dict
from open_clt.errors import ConfigError
from open_clt.evaluation.effects import measured_changes, predicted_effects
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.jobs.requests import Request, Work, check_fits, integer_of, session_of, text_of
from open_clt.explorer.models import Models
from open_clt.explorer.session.session import Effect, Likely, Run, Steer
from open_clt.explorer.traces import Trace
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.progress import report_progress
from open_clt.replacement.interventions.intervene import InterventionRecord, generate_patched, intervene
from open_clt.replacement.interventions.intervention import (
    Constrained,
    Intervention,
    Iterative,
    Patching,
)
from open_clt.transcoders.feature import Feature, FeaturePlace

FROZEN: dict[str, str] = {
    "nothing": "nothing is frozen: attention, norms and all other features react to the change",
    "direct": "attention, norms and all other features are frozen: direct effects only",
}
"""What can be frozen while features are changed, in words."""
_TOP = 5
_LONGEST_CONTINUATION = 40


def steer(explorer: Explorer, request: Request) -> Work:
    """Change the features that a session lists; the result is a run."""
    session, frozen = session_of(request), text_of(request, "frozen")
    trace = explorer.trace_of(session.graph)
    check_steers(session.steers, frozen)
    return lambda: to_dict(steer_prompt(explorer.wait_for_models(), trace, session.steers, frozen))


def proceed(explorer: Explorer, request: Request) -> Work:
    """Continuations of the prompt without and with the changes that a session lists."""
    session, n_tokens = session_of(request), integer_of(request, "tokens", 1, _LONGEST_CONTINUATION)
    trace = explorer.trace_of(session.graph)
    check_steers(session.steers, "nothing")
    return lambda: continuations(explorer.wait_for_models(), trace, session.steers, n_tokens)


def check_steers(steers: Sequence[Steer], frozen: str) -> None:
    """Raise ConfigError if nothing is to be changed, a node is not a feature, or it is not known what is frozen."""
    if not steers:
        raise ConfigError("The list is empty; add a feature or a group.")
    for node in (node for steer in steers for node in steer.members):
        FeaturePlace.parse(node)
    if frozen not in FROZEN:
        raise ConfigError(f"{frozen[:40]!r} is not one of {', '.join(FROZEN)}.")


def interventions_of(steers: Sequence[Steer]) -> list[Intervention]:
    """The interventions of entries of the steering page; an entry may cover every position."""
    made: list[Intervention] = []
    for steer in steers:
        places = dict.fromkeys(
            FeaturePlace.parse(node)._replace(position=None) if steer.everywhere else FeaturePlace.parse(node)
            for node in steer.members
        )
        for feature, position in places:
            made.append(Intervention(feature.layer, position, feature.index, scale=steer.scale))
    return made


def steer_prompt(models: Models, trace: Trace, steers: Sequence[Steer], frozen: str) -> Run:
    """Run the model with changed features, and compare the changes of the outputs with those that the graph predicts.

    Raises ConfigError if the graph is not one of these models.
    """
    check_fits(trace, models)
    report_progress("steering", 0, 1)
    patching: Patching = Constrained() if frozen == "direct" else Iterative()
    tokens = torch.tensor(trace.graph.info.tokens, device=models.model.device)
    record = intervene(models.corrected, tokens, interventions_of(steers), patching, top=_TOP)
    return Run(
        steers=tuple(steers),
        frozen=frozen,
        before=tuple(Likely(top.token, round(top.probability, 6)) for top in record.top_before),
        after=tuple(Likely(top.token, round(top.probability, 6)) for top in record.top_after),
        effects=tuple(_outputs(trace.graph, models, record, steers, frozen)),
        kl_divergence=round(max(record.kl_divergence, 0.0), 9),
    )


def continuations(models: Models, trace: Trace, steers: Sequence[Steer], n_tokens: int) -> list[str]:
    """The continuations of the prompt without and with the changes, which always take the likeliest token.

    Nothing is frozen, because a prompt's attention does not say what later tokens attend to.
    """
    check_fits(trace, models)
    tokens = torch.tensor(trace.graph.info.tokens, device=models.model.device)
    texts: list[str] = []
    for number, changed in enumerate(([], steers)):
        report_progress("continuing", number, 2)
        made = generate_patched(
            models.corrected, tokens, interventions_of(changed), max_new_tokens=n_tokens, temperature=0.0
        )
        texts.append(made.continuation)
    return texts


def _outputs(
    graph: AttributionGraph, models: Models, record: InterventionRecord, steers: Sequence[Steer], frozen: str
) -> list[Effect]:
    """For each output that a run shows: its name, and the predicted and the measured change of its total."""
    predicted = predicted_effects(graph, relative_changes(graph, steers)[None], paths=frozen != "direct")[0]
    measured = measured_changes(graph, attributable(models.transcoder, models.model), record)
    outputs = graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()
    return [
        Effect(name, round(float(predicted[row]), 6), round(float(measured[row]), 6))
        for row, name in zip(outputs, graph.info.target_names, strict=True)
        if not bool(measured[row].isnan())
    ]


def relative_changes(graph: AttributionGraph, steers: Sequence[Steer]) -> Float[Tensor, "node"]:
    """The factor of each node's activation, less 1, after all entries, each of which multiplies what it changes."""
    relative = torch.zeros(graph.n_nodes, dtype=torch.double)
    row_of = {name: row for row, name in enumerate(graph.ids())}
    for steer in steers:
        rows = _rows(graph, row_of, steer)
        relative[rows] = (relative[rows] + 1) * steer.scale - 1
    return relative


def _rows(graph: AttributionGraph, row_of: dict[str, int], steer: Steer) -> list[int]:
    """Rows of the nodes that an entry changes: its own nodes, or all nodes of its features."""
    if not steer.everywhere:
        return [row_of[node] for node in steer.members if node in row_of]
    features = {FeaturePlace.parse(node).feature for node in steer.members}
    rows, nodes = graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist(), graph.nodes
    return [row for row in rows if Feature(int(nodes.layer[row]), int(nodes.index[row])) in features]

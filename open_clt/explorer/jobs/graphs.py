"""Jobs of the graph page: traces, views, circuits, predictions, heads, attention, groups and exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from open_clt.attribution.attention_table import explained_look, source_name
from open_clt.attribution.heads import head_contributions
from open_clt.attribution.qk import explain_edge
from open_clt.explorer.explorer import Explorer
from open_clt.explorer.exports import Exported, check_kind, export
from open_clt.explorer.jobs.requests import Request, Work, check_fits, integer_of, session_of, text_of
from open_clt.explorer.traces import Trace, check_prompt, fits, trace_prompt, with_predictions
from open_clt.explorer.views import circuit_view, graph_view
from open_clt.features.labelling.automatic import in_brief
from open_clt.graphs.attention import Carried, ExplainedLook
from open_clt.graphs.operations import node_numbers
from open_clt.graphs.supernodes import suggest_supernodes
from open_clt.progress import report_progress

_HEADS = 12
"""Number of heads that the page lists of an edge."""
_KEYS, _PAIRS = 2, 6
"""Number of keys of a head, and of pairs of sources of a key, that the page lists."""


def trace(explorer: Explorer, request: Request) -> Work:
    """Trace a prompt; the result is the key of the trace."""
    prompt = text_of(request, "prompt")
    if explorer.models is not None:
        check_prompt(explorer.models, prompt)

    def work() -> dict[str, str]:
        models = explorer.wait_for_models()
        check_prompt(models, prompt)
        return {"graph": trace_prompt(models, explorer.traces, prompt, explorer.budget).key}

    return work


def view(explorer: Explorer, request: Request) -> Work:
    """What the graph page shows of a session."""
    session = session_of(request)
    shown_trace = explorer.trace_of(session.graph)

    def work() -> dict[str, Any]:
        models = explorer.models
        return graph_view(shown_trace, explorer.views.shown(shown_trace, session, models), models)

    return work


def circuit(explorer: Explorer, request: Request) -> Work:
    """What the circuit shows of a session; the result is None if nothing is pinned."""
    session = session_of(request)
    shown_trace = explorer.trace_of(session.graph)
    return lambda: circuit_view(shown_trace, session, explorer.models)


def predictions(explorer: Explorer, request: Request) -> Work:
    """What both models predict at each position of a trace."""
    found = explorer.trace_of(request.get("graph"))

    def work() -> list[dict[str, Any]]:
        models = explorer.wait_for_models()
        if found.predictions or not fits(found, models):
            return list(found.predictions)
        full = with_predictions(found, models)
        explorer.traces.hold(full)
        return list(full.predictions)

    return work


def heads(explorer: Explorer, request: Request) -> Work:
    """The attention heads that carry an edge, largest part first: those that the graph stores, or all of them."""
    found = explorer.trace_of(request.get("graph"))
    names = text_of(request, "source"), text_of(request, "target")
    source, target = node_numbers(found.graph, names).tolist()

    def work() -> dict[str, Any]:
        attention = found.graph.attention
        stored = _stored_parts(found, source, target)
        if attention is not None and (stored or found.name):  # no model computes the rest of a graph from a file
            edge = float(found.graph.edges.weights_of(target)[found.graph.edges.sources_of(target) == source].sum())
            sums: dict[tuple[int, int], float] = {}
            for part in stored:
                head = part.look.layer, part.look.head
                sums[head] = sums.get(head, 0.0) + part.weight
            largest = sorted(sums, key=lambda head: -abs(sums[head]))[:_HEADS]
            return {
                "direct": edge - sum(sums.values()),
                "total": edge,
                "heads": [[*head, sums[head]] for head in largest],
                "share": attention.share,
            }
        models = explorer.wait_for_models()
        check_fits(found, models)
        report_progress("splitting the edge by heads", 0, 1)
        parts = head_contributions(models.model, models.transcoder, found.graph, target).edge(source)
        values = parts.heads.flatten()
        order = values.abs().argsort(descending=True)[:_HEADS].tolist()
        n_heads = parts.heads.shape[1]
        return {
            "direct": parts.direct,
            "total": parts.direct + float(values.sum()),
            "heads": [[at // n_heads, at % n_heads, float(values[at])] for at in order if float(values[at])],
        }

    return work


def attention(explorer: Explorer, request: Request) -> Work:
    """Why a head that carries an edge looked at the keys that it takes most of the edge from, largest part first.

    What the graph stores is shown; otherwise it is computed.
    """
    found = explorer.trace_of(request.get("graph"))
    names = text_of(request, "source"), text_of(request, "target")
    source, target = node_numbers(found.graph, names).tolist()
    wanted = tuple(integer_of(request, name, 0, 2**31 - 1) for name in ("layer", "head"))

    def work() -> list[dict[str, Any]]:
        if found.graph.attention is not None and (stored := _stored_parts(found, source, target)):
            of_head = [part for part in stored if part.look[:2] == wanted]
            looks = [(part.weight, found.graph.attention.explained(part.look)) for part in of_head]
        else:
            models = explorer.wait_for_models()
            check_fits(found, models)
            report_progress("explaining attention", 0, 1)
            explained = explain_edge(models.model, models.transcoder, found.graph, source, target, share=0.0)
            of_head = [part for part in explained if part.carried.look[:2] == wanted]
            looks = [(part.carried.weight, explained_look(part.explanation, _PAIRS)) for part in of_head[:_KEYS]]
        return [_explained(found, weight, look) for weight, look in looks[:_KEYS]]

    return work


def _stored_parts(found: Trace, source: int, target: int) -> list[Carried]:
    """The parts of an edge that the graph stores, largest first."""
    nodes, attention = found.graph.nodes, found.graph.attention
    return [] if attention is None else attention.of_edge(*nodes[torch.tensor([source, target])].ids())


def _explained(found: Trace, weight: float, explained: ExplainedLook) -> dict[str, Any]:
    """What the page shows of the attention of a head to one key, from which it carries ``weight`` of an edge."""
    graph, key = found.graph, explained.look.key
    labels = {feature: in_brief(label) for feature, label in graph.labels.items()}
    return {
        "key": key,
        "token": graph.info.token_strings[key],
        "weight": weight,
        "attention": explained.attention,
        "score": explained.score,
        "constant": explained.constant_part,
        "pairs": [
            [*(source_name(node, graph.info.token_strings, labels) for node in (pair.query, pair.key)), pair.weight]
            for pair in explained.pairs[:_PAIRS]
        ],
    }


def suggestions(explorer: Explorer, request: Request) -> Work:
    """Groups of similar features in the part of the graph that a session shows."""
    session = session_of(request)
    found = explorer.trace_of(session.graph)

    def work() -> list[dict[str, Any]]:
        models = explorer.models
        shown = explorer.views.shown(found, session, models)
        report_progress("comparing features", 0, 1)
        transcoder = models.transcoder if models is not None and fits(found, models) else None
        groups = suggest_supernodes(shown.graph, transcoder)
        names = brief_names([group.label for group in groups])
        return [{"name": name, "members": list(group.members)} for name, group in zip(names, groups, strict=True)]

    return work


def brief_names(names: Sequence[str]) -> list[str]:
    """Names as graphs draw them; a name stays as it is where two brief ones would be equal."""
    brief = [in_brief(name) for name in names]
    return [name if brief.count(short) > 1 else short for name, short in zip(names, brief, strict=True)]


def write_file(explorer: Explorer, request: Request) -> Work:
    """Write a file of what a session shows; the result names the file, which ``Explorer.file`` returns."""
    session, kind = session_of(request), text_of(request, "kind")
    check_kind(kind)
    found = explorer.trace_of(session.graph)

    def work() -> dict[str, str]:
        shown = explorer.views.shown(found, session, explorer.models)
        made = export(kind, Exported(found, shown, session, explorer.models))
        return {"file": explorer.keep_file(made), "name": made.name}

    return work

"""The circuit of a session: the graph between the nodes that a person pinned and grouped."""

from __future__ import annotations

from open_clt.explorer.session.session import Session
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.operations import subgraph
from open_clt.graphs.supernodes import GroupedGraph, group


def circuit_of(graph: AttributionGraph, session: Session) -> GroupedGraph | None:
    """The pinned nodes and groups of a session, between the tokens and the outputs of the graph.

    All other nodes count as unexplained. Nodes that the graph does not have are left out; None if it has none of them.
    Raises AttributionError if the groups form a cycle.
    """
    ids = set(graph.ids())
    chosen = [node for node in session.circuit if node in ids]
    if not chosen:
        return None
    ends = graph.of_kind(NodeKind.EMBEDDING, NodeKind.LOGIT, NodeKind.TARGET).nonzero().flatten().tolist()
    part = subgraph(graph, [*chosen, *(graph.node(row).id for row in ends)])
    return group(part, [supernode for supernode in session.supernodes if set(supernode.members) <= ids])

"""The column of names: is the hidden hop of two-hop prompts named with its state? See ``names.py``."""

from __future__ import annotations

from collections.abc import Iterator

from columns.shares import Numbers
from dictionaries import Dictionary, Graphs
from known_circuits import Question
from names import encoded

from open_clt.circuits.hidden_hop import find_hidden_hop


def named(
    dictionary: Dictionary, graphs: Graphs, questions: list[Question], *, tokens: int, seed: int
) -> Iterator[Numbers]:
    """Yield, for each question that has a graph, whether a hidden hop is found, and whether its name is the state."""
    model, transcoder = dictionary.model, dictionary.transcoder
    text = encoded(model, transcoder, tokens, seed)
    for question in questions:
        if graphs.has(question.prompt):
            hop = find_hidden_hop(model, transcoder, graphs.of(question.prompt, question.answer), text)
            yield {"found": float(hop is not None), "named": float(hop is not None and hop.name == question.state)}

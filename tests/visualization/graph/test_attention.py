"""The heat map of pairs of sources shows the entries of the table, with the sources that have the largest ones."""

from __future__ import annotations

import numpy as np
import pytest

from open_clt.attribution.attention_table import AttentionExplanation
from open_clt.attribution.qk import explain_attention
from open_clt.language.language_model import LanguageModel
from open_clt.visualization.graph.attention import visualize_attention
from tests.attribution.cases import KINDS, PROMPT
from tests.random_transcoders import random_architecture


@pytest.fixture
def explanation(tiny_gpt2: LanguageModel) -> AttentionExplanation:
    transcoder = random_architecture(KINDS["clt"])
    return explain_attention(tiny_gpt2, transcoder, PROMPT, layer=2, head=1, query=-1, key=2, versus=1)


@pytest.mark.parametrize("constants", [False, True])
def test_the_cells_are_entries_of_the_table(explanation: AttentionExplanation, constants: bool) -> None:
    figure = visualize_attention(explanation, top_n=4, constants=constants)
    ax = figure.axes[0]
    shown = np.asarray(ax.images[0].get_array())
    assert shown.shape == (4, 4)
    names = [[label.get_text() for label in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels())]
    ids = [[str(node) for node in nodes.ids()] for nodes in (explanation.query_nodes, explanation.key_nodes)]
    table = explanation.table() if constants else explanation.table_of_text()
    for row, query in enumerate(names[0]):
        for column, key in enumerate(names[1]):
            place = [side.index(name.split()[0].split("␣")[0]) for side, name in zip(ids, (query, key), strict=True)]
            assert shown[row, column] == pytest.approx(float(table[place[0], place[1]]))
    assert any("bias" in name for side in names for name in side) is constants
    assert "rather than" in str(ax.figure.texts[0].get_text() if ax.figure.texts else ax.get_title())


def test_text_and_constants_make_the_whole_score(explanation: AttentionExplanation) -> None:
    text = float(explanation.table_of_text().sum())
    assert text + explanation.constant_part() == pytest.approx(float(explanation.table().sum()), abs=1e-5)

"""Single tokens: what the weights say of a feature agrees with encoding each token, and long lists become rules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from open_clt.features.firing import feature_activations
from open_clt.features.labelling.automatic import label_record
from open_clt.features.labelling.rules import Condition, Where
from open_clt.features.labelling.single_tokens import SingleTokens, Strongest, single_tokens
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from tests.features.labelling.made_records import background_for, record_for
from tests.random_transcoders import random_transcoder


@pytest.mark.slow
def test_the_tokens_are_those_that_make_a_feature_active_alone(tiny_gpt2: LanguageModel) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    found = single_tokens(tiny_gpt2, transcoder)
    names = tiny_gpt2.token_strings(range(tiny_gpt2.vocab_size))
    contexts = torch.tensor([[tiny_gpt2.bos_token_id, token] for token in range(tiny_gpt2.vocab_size)])
    sizes = torch.stack([feature_activations(tiny_gpt2, transcoder, each).dense()[1].abs() for each in contexts])
    for layer in range(3):
        feature = Feature(layer, int((sizes[:, layer] > 0).sum(0).argmax()))
        column = sizes[:, layer, feature.index]
        order = column.argsort(descending=True).tolist()
        expected = [names[token] for token in order if column[token] > 0 and column[token] >= 0.3 * column.max()]
        assert len(expected) > 10
        assert sorted(found.of(feature)[:3]) == sorted(expected[:3])
        assert len(found.of(feature)) == min(64, len(expected))


def test_a_family_of_tokens_that_few_examples_show_becomes_a_rule() -> None:
    """Each of many rare words makes the feature active; no example shows more than one of them."""
    family = [f" rare{number}" for number in range(40)]

    def fires(tokens: Sequence[str], position: int) -> bool:
        return hash_of(tokens) % 10 == 0 and position == 7

    def with_word(tokens: Sequence[str]) -> tuple[str, ...]:
        return (*tokens[:7], family[hash_of(tokens) // 10 % 40], *tokens[8:])

    record = record_for(Feature(0, 0), fires)
    groups = tuple(
        group._replace(examples=tuple(example._replace(tokens=with_word(example.tokens)) for example in group.examples))
        for group in record.groups
    )
    object.__setattr__(record, "groups", groups)
    inputs = SingleTokens(family, {0: Strongest(torch.ones(1, 40), torch.arange(40)[None])})
    background = background_for([])
    without, label = label_record(record, background), label_record(record, background, inputs)
    assert without is not None
    assert label is not None
    assert label.text == "fires on “ rare0”, “ rare1”, “ rare2”, “ rare3” or 36 more"
    assert label.confidence > 0.85 > without.confidence
    assert label.score == 1.0


def hash_of(tokens: Sequence[str]) -> int:
    """A number that depends on the tokens alone."""
    return sum(len(token) * (position + 3) ** 2 for position, token in enumerate(tokens))


def test_a_short_list_is_named_whole() -> None:
    words = tuple("abcdefg")
    assert Condition(Where.HERE, words[:6]).text.endswith("“e” or “f”")
    assert Condition(Where.HERE, words).text.endswith("“d” or 3 more")

"""Automatic labels: the rule of a made feature is found and scores well; weak evidence gives little confidence."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from open_clt.features.labelling.automatic import arrow_text, label_record, label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.labelling.rules import Windows
from open_clt.features.records import FeatureExample, FeatureLabel, FeatureRecord, TokenEffect
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from tests.features.labelling.made_records import Fires, background_for, record_for
from tests.random_transcoders import random_transcoder

FEATURE = Feature(1, 3)


def on_texas(tokens: Sequence[str], position: int) -> bool:
    return tokens[position] in (" Texas", " Dallas")


def after_capital(tokens: Sequence[str], position: int) -> bool:
    return position > 0 and tokens[position - 1] == " capital"


def on_is_after_capital(tokens: Sequence[str], position: int) -> bool:
    return tokens[position] == " is" and " capital" in tokens[:position]


def on_numbers(tokens: Sequence[str], position: int) -> bool:
    return tokens[position] == " 12"


@pytest.mark.parametrize(
    ("fires", "text"),
    [
        (on_texas, "fires on “ Texas” or “ Dallas”"),
        (after_capital, "fires on the token after “ capital”"),
        (on_is_after_capital, "fires on “ is” within 16 tokens after “ capital”"),
        (on_numbers, "fires on “ 12”"),
    ],
)
def test_the_rule_of_a_feature_is_found(fires: Fires, text: str) -> None:
    label = label_record(record_for(FEATURE, fires), background_for([(FEATURE, fires)]))
    assert label is not None
    assert label.text.replace("“ Dallas” or “ Texas”", "“ Texas” or “ Dallas”") == text
    assert label.automatic
    assert label.confidence > 0.85
    assert label.score > 0.95


def test_contexts_without_a_rule_get_little_confidence() -> None:
    """A feature that is active in windows drawn at random, whatever their tokens."""
    rng = random.Random(0)
    chosen: dict[tuple[str, ...], int] = {}

    def at_random(tokens: Sequence[str], position: int) -> bool:
        return chosen.setdefault(tuple(tokens), rng.randrange(60)) == position

    label = label_record(record_for(FEATURE, at_random), background_for([(FEATURE, at_random)]))
    assert label is not None
    assert label.confidence < 0.5
    assert label.score < 0.7


def test_a_single_example_gives_less_confidence_than_many() -> None:
    record, background = record_for(FEATURE, on_texas), background_for([(FEATURE, on_texas)])
    one = label_record(replace(record, groups=(), examples=record.examples[:1]), background)
    many = label_record(record, background)
    assert one is not None
    assert many is not None
    assert one.confidence < 0.75 < many.confidence
    assert math.isnan(one.score)


def test_the_score_is_measured_on_contexts_that_the_rule_was_not_found_with() -> None:
    """The held-out examples are of another feature, so a rule that fits the others must fail on them."""
    record, other = record_for(FEATURE, on_texas), record_for(FEATURE, after_capital)
    groups = tuple(
        group._replace(examples=tuple(pair[row % 2] for row, pair in enumerate(pairs)))
        for group, pairs in (
            (group, zip(group.examples, also.examples, strict=False))
            for group, also in zip(record.groups, other.groups, strict=True)
        )
    )
    background = background_for([(FEATURE, lambda *place: on_texas(*place) or after_capital(*place))])
    label = label_record(replace(record, groups=groups), background)
    assert label is not None
    assert "Texas" in label.text
    assert label.confidence > 0.85
    assert label.score < 0.75


def test_promoted_tokens_are_named_if_they_follow_the_peaks() -> None:
    record, background = record_for(FEATURE, after_capital, raises=[" the", "zzz"]), background_for([])
    label = label_record(record, background)
    assert label is not None
    assert label.text.endswith("; promotes “ the”")
    unseen = label_record(record_for(FEATURE, after_capital, raises=["zzz"]), background)
    assert unseen is not None
    assert "promotes" not in unseen.text


def test_labels_of_users_are_kept() -> None:
    own = FeatureLabel("my words")
    records = [replace(record_for(FEATURE, on_texas), label=label) for label in (own, None)]
    labelled = [record.label for record in label_records(iter(records), background_for([]))]
    assert labelled[0] == own
    assert labelled[1] is not None
    assert labelled[1].automatic


def test_a_feature_that_is_never_active_has_no_label() -> None:
    record = FeatureRecord(FEATURE, 0.0, 0.0, (), (TokenEffect(" cat", 1.0),), ())
    assert label_record(record, background_for([])) is None
    assert label_record(record) is None


@pytest.mark.parametrize(
    ("peak_tokens", "raised", "label"),
    [
        ([" dog"], [" barks", "barks", " runs"], "dog → barks, runs"),
        ([" dog", "\ufffd", "\x15"], ["\ufffd", "\x15", " ", " runs"], "dog → runs"),
        ([","], ["'", " \n", "“"], "“,” → “'”, ““”"),
        (["\ufffd"], ["\x15"], ""),
        (["\ufffd"], [" cat"], "cat"),
    ],
)
def test_labels_skip_tokens_that_cannot_be_read(peak_tokens: list[str], raised: list[str], label: str) -> None:
    peaks = tuple(FeatureExample((token,), torch.ones(1), 0) for token in peak_tokens)
    effects = tuple(TokenEffect(token, 1.0) for token in raised)
    assert arrow_text(FeatureRecord(Feature(0, 5), 0.1, 1.0, peaks, effects, ())) == label


def test_the_background_says_where_features_are_active(tiny_gpt2: LanguageModel) -> None:
    """Windows and activity agree with the features of whole contexts, encoded one by one."""
    from open_clt.features.firing import feature_activations

    transcoder = random_transcoder(tiny_gpt2)
    contexts = torch.randint(1, 255, (5, 21), generator=torch.Generator().manual_seed(0))
    background = background_of(tiny_gpt2, transcoder, contexts, window=8, n_windows=100)
    assert len(background) == 5 * 2
    assert background.length == 8
    activations = [feature_activations(tiny_gpt2, transcoder, context) for context in contexts]
    for held_out in (False, True):
        windows: Windows = background.windows(held_out=held_out)
        for row, window in enumerate(windows.tokens):
            (start, whole) = next(
                (start, whole)
                for whole in activations
                for start in range(14)
                if whole.tokens[start : start + 8] == window
            )
            active = (whole.dense()[start : start + 8] != 0).any(0)
            for feature in (Feature(0, 0), Feature(1, 3), Feature(2, 5)):
                assert background.inactive(feature, held_out=held_out)[row] == (not active[feature])

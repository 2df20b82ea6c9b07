"""Targets that are written as texts, and what a graph remembers of its targets."""

from __future__ import annotations

import pytest
import torch

from open_clt.activations.language_model import LanguageModel
from open_clt.attribution.attribute import attribute
from open_clt.attribution.targets import (
    Direction,
    FeaturePreactivation,
    LogitDifference,
    SalientLogits,
    Target,
    TokenLogits,
    read_target,
)
from open_clt.errors import AttributionError
from tests.attribution.cases import PROMPT, random_transcoder


def test_a_text_is_a_feature_or_a_token_or_a_difference(tiny_gpt2: LanguageModel) -> None:
    the, dash = (tiny_gpt2.token_ids([text])[0][0] for text in (" the", "-"))
    written: dict[str, Target] = {
        "2:5:7": FeaturePreactivation(layer=2, feature=7, position=5),
        "2:-1:7": FeaturePreactivation(layer=2, feature=7, position=-1),
        " the": TokenLogits(tokens=(the,), position=3),
        "-": TokenLogits(tokens=(dash,), position=3),
        " the--7": LogitDifference(positive=the, negative=tiny_gpt2.token_ids(["7"])[0][0], position=3),
        " the---": LogitDifference(positive=the, negative=dash, position=3),
    }
    assert {text: read_target(tiny_gpt2, text, position=3) for text in written} == written


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("zebra", "'zebra' is"),
        ("", "'' is 0 tokens"),
        (" the--", "'' is 0 tokens"),
        ("--", "'' is 0 tokens"),
        (" the--zebra", "'zebra' is"),
        ("2:*:7", "every position"),
        ("2:5", "not one"),
    ],
)
def test_other_texts_are_refused(tiny_gpt2: LanguageModel, text: str, match: str) -> None:
    with pytest.raises(AttributionError, match=match):
        read_target(tiny_gpt2, text)


def test_a_graph_remembers_its_targets_as_plain_values(tiny_gpt2: LanguageModel) -> None:
    the = tiny_gpt2.token_ids([" the"])[0][0]
    last = len(tiny_gpt2.tokenize(PROMPT)) - 1
    targets = [
        SalientLogits(max_count=2, probability=0.5),
        TokenLogits(tokens=(" the", 9), position=3),
        LogitDifference(positive=" the", negative=9),
        Direction(vector=torch.ones(32), name="probe"),
        FeaturePreactivation(layer=1, feature=4, position=-2),
    ]
    graph = attribute(tiny_gpt2, random_transcoder("clt"), PROMPT, targets=targets)
    assert graph.info.settings["targets"] == [
        {"kind": "salient_logits", "max_count": 2, "probability": 0.5, "position": last},
        {"kind": "token_logits", "tokens": [the, 9], "position": 3},
        {"kind": "logit_difference", "positive": the, "negative": 9, "position": last},
        {"kind": "direction", "name": "probe", "position": last},
        {"kind": "feature", "layer": 1, "feature": 4, "position": last - 1},
    ]

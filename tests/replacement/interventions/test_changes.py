"""What interventions add to the features of a layer equals that of one intervention after another."""

from __future__ import annotations

import random

import torch

from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervention import Intervention, changes
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from tests.random_transcoders import random_transcoder


def test_many_interventions_equal_those_applied_one_after_another(tiny_gpt2: LanguageModel) -> None:
    """Values of thousands of features are set in one step; the slow twin sets one after another."""
    features = observe(ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)), "The cat sat on the mat").features[0]
    rng = random.Random(0)
    places = [rng.choice((rng.randrange(features.batch + 2), slice(1, None, 2))) for _ in range(200)]
    many = [
        Intervention(0, place, rng.randrange(6), **rng.choice(({"value": rng.random()}, {"scale": rng.uniform(-2, 2)})))
        for place in places
    ]
    expected = features.dense().clone()
    for each in many:
        rows = [row for row in range(features.batch) if each.covers(row)]
        before = expected[rows, each.feature]
        expected[rows, each.feature] = before * each.scale if each.value is None else torch.tensor(each.value)
    added = changes(features, many, 0)
    assert added is not None
    torch.testing.assert_close(features.dense() + added.dense(), expected)
    assert changes(features, many, 1) is None

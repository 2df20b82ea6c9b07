"""Model cards say what a transcoder learned from."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.publishing.push import publication
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import random_architecture

DATASET = {"tokens": 1600, "model": "gpt2", "input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}


@pytest.mark.parametrize(("dataset", "is_named"), [(DATASET, True), ({"tokens": "many"}, False), (3, False)])
def test_a_card_names_the_dataset_of_activations(dataset: object, is_named: bool, tmp_path: Path) -> None:
    config = CrossLayerConfig(n_layers=2, d_model=4, n_features=6, nonlinearity=ReLUConfig())
    record = {"settings": {}, "steps": 3, "tokens": 64, "dataset": dataset}
    save_transcoder(random_architecture(config), tmp_path, record=record)
    card = publication(tmp_path, "org/name").card
    assert "3 steps on 64 tokens" in card
    assert ("a dataset of 1,600 tokens of gpt2, from hook" in card) == is_named

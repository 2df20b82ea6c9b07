"""Configs: an illegal value raises an error that names the value and what is legal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from open_clt.config import (
    CrossLayerConfig,
    DataConfig,
    LearningConfig,
    MoltConfig,
    ReportConfig,
    SamplingConfig,
    TextsConfig,
    TopKConfig,
    TrainingConfig,
)
from open_clt.errors import ConfigError
from tests.refusals import refuses

SHAPE = {"n_layers": 3, "n_features": 40, "d_model": 4}


@pytest.mark.parametrize(
    ("make_config", "named"),
    [
        (lambda: CrossLayerConfig(**SHAPE, reach=4), "reach 4 1 n_layers 3"),
        (lambda: CrossLayerConfig(**SHAPE, prefixes=(20, 8)), "prefixes 20 8"),
        (lambda: CrossLayerConfig(**SHAPE, prefixes=(40,)), "prefixes n_features 40"),
        (lambda: CrossLayerConfig(**SHAPE, nonlinearity=TopKConfig(k=41)), "k 41 n_features"),
        (lambda: CrossLayerConfig(**{**SHAPE, "d_model": 0}), "d_model 0 1"),
        (lambda: MoltConfig(n_layers=3, d_model=4, ranks=(4, 2), counts=(8,)), "ranks counts"),
        (lambda: DataConfig(batch_size=0), "batch_size 0"),
        (lambda: DataConfig(memory_limit=0.0), "memory_limit 0.0"),
        (lambda: TextsConfig(source="a", held_out_contexts=-1), "held_out_contexts -1"),
        (lambda: LearningConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: TrainingConfig.of(decay_share=1.5), "decay_share 1.5"),
        (lambda: ReportConfig(graphs=-1), "graphs -1 0"),
        (lambda: SamplingConfig(top_p=0.0), "top_p 0.0"),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(make_config: Callable[[], object], named: str) -> None:
    with refuses(ConfigError, *named.split()):
        make_config()


@pytest.mark.parametrize(("reach", "expected"), [(None, [3, 2, 1]), (2, [2, 2, 1]), (1, [1, 1, 1])])
def test_no_feature_reaches_beyond_the_last_layer(reach: int | None, expected: list[int]) -> None:
    config = CrossLayerConfig(**SHAPE, reach=reach)
    assert [config.reach_of(source) for source in range(3)] == expected

"""Formulas of scale: they count the parameters of real transcoders, and docs/scaling.md shows their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.config import CrossLayerConfig, JumpReLUConfig, TopKConfig
from open_clt.training.parallel.scaling import Layout, memory, parameters, reaches, traffic
from open_clt.training.parallel.shards import shard_config
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tools.scaling_tables import tables


def test_the_page_shows_the_tables(repository: Path) -> None:
    page = (repository / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in tables():
        assert table in page, "run tools/scaling_tables.py, and copy its tables to docs/scaling.md"


@pytest.mark.parametrize("reach", [None, 2])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("nonlinearity", [TopKConfig(k=2), JumpReLUConfig()])
def test_parameters_are_counted_right(nonlinearity: TopKConfig | JumpReLUConfig, skip: bool, reach: int | None) -> None:
    config = CrossLayerConfig(n_layers=3, n_features=8, d_model=5, reach=reach, skip=skip, nonlinearity=nonlinearity)
    assert sum(parameters(config)) == _count(config)
    assert parameters(config).here(Layout(shards=2)) == _count(shard_config(config, 2))
    assert memory(config, 64, Layout()).weights == 16 * _count(config)


def _count(config: CrossLayerConfig) -> int:
    return sum(parameter.numel() for parameter in CrossLayerTranscoder(config).parameters())


def test_one_process_sends_nothing_and_more_send_more() -> None:
    config = CrossLayerConfig(n_layers=3, n_features=8, d_model=5, nonlinearity=TopKConfig(k=2))
    assert reaches(config) == 6
    assert traffic(config, 64, Layout()).sent(Layout()) == (0, 0)
    sharded, split = Layout(shards=4), Layout(replicas=4)
    assert traffic(config, 64, sharded).sent(sharded) == (4 * 64 * 3 * 5 * 1.5 + 4 * 64 * 3 * 2 * 3, 0)
    assert traffic(config, 64, split).sent(split) == (0, 1.5 * (4 * _count(config) + 8 * 3 * 8))

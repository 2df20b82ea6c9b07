"""Configs as JSON: they are read as they were written, and a wrong key or type raises an error that names it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import pytest

from open_clt import files
from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    DataConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    MoltConfig,
    TopKConfig,
    TrainingConfig,
)
from open_clt.config.json import from_dict, to_dict
from open_clt.errors import ConfigError
from tests.refusals import refuses


@pytest.mark.parametrize(
    "config",
    [
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, nonlinearity=JumpReLUConfig(bandwidth=0.5)),
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, reach=2, nonlinearity=BatchTopKConfig(k=3)),
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, prefixes=(8, 20), input_hook="hook_resid_pre"),
        MoltConfig(n_layers=3, d_model=4, ranks=(4, 2), counts=(8, 16), skip=True),
        TrainingConfig.of(max_steps=10),
        TrainingConfig.of(loss=LossConfig(sparsity=L1SparsityConfig(coefficient=0.1), preactivation_on="all")),
    ],
)
def test_to_json_and_back_is_the_identity(config: CrossLayerConfig | MoltConfig | TrainingConfig) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("value", [10**30, 2**63, np.float32(0.5), 3])
def test_a_number_is_written_as_its_reader_accepts_it(value: float) -> None:
    config = JumpReLUConfig(bandwidth=value)
    assert files.parse_json(files.json_text(to_dict(config), "config")) == to_dict(config)
    assert config.bandwidth == float(value)


def test_a_number_that_float64_cannot_hold_is_refused() -> None:
    with refuses(ConfigError, "learning_rate"):
        TrainingConfig.of(learning_rate=10**400)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"data": {"batchsize": 3}}, ["'batch_size'"]),
        ({"qwertz": 3}, ["'qwertz'", "learning"]),
        ({"data": {"batch_size": "many"}}, ["batch_size", "'many'"]),
        ({"data": {"batch_size": True}}, ["batch_size", "int"]),
        ({"learning": {"loss": {"sparsty": 1.0}}}, ["'sparsity'"]),
        ({"learning": {"loss": {"sparsity": {"kind": "l2", "coefficient": 1.0}}}}, ["'l2'", "tanh, l1"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_legal(values: dict[str, object], named: list[str]) -> None:
    with refuses(ConfigError, *named):
        from_dict(TrainingConfig, values)


def test_each_setting_goes_to_the_part_that_has_it() -> None:
    config = TrainingConfig.of(batch_size=7, learning_rate=0.5, held_out_contexts=3, every=2, gradient_clip=None)
    assert (config.data.batch_size, config.learning.learning_rate) == (7, 0.5)
    assert (config.texts.held_out_contexts, config.checkpoints.every, config.gradient_clip) == (3, 2, None)
    assert TrainingConfig.of(data=DataConfig(batch_size=7)) == TrainingConfig.of(batch_size=7)


def test_no_setting_belongs_to_two_parts() -> None:
    parts = [getattr(TrainingConfig(), field.name) for field in fields(TrainingConfig)]
    names = [field.name for part in parts if is_dataclass(part) for field in fields(part)]
    assert len(names) == len(set(names)) > 20


@pytest.mark.parametrize(
    ("settings", "named"), [({"batchsize": 3}, "'batch_size'"), ({"data": DataConfig(), "batch_size": 3}, "batch_size")]
)
def test_an_unknown_or_repeated_setting_is_named(settings: dict[str, object], named: str) -> None:
    with refuses(ConfigError, named):
        TrainingConfig.of(**settings)


def test_the_error_for_an_unknown_kind_lists_the_known_kinds() -> None:
    values = {"n_layers": 1, "n_features": 20, "d_model": 1, "nonlinearity": {"kind": "gelu"}}
    with refuses(ConfigError, "relu", "jumprelu", "topk", "batchtopk", "gelu"):
        from_dict(CrossLayerConfig, values)


def test_a_missing_setting_is_named() -> None:
    with refuses(ConfigError, "d_model"):
        from_dict(CrossLayerConfig, {"n_layers": 1, "n_features": 20})


def test_a_wrong_list_or_item_is_named() -> None:
    values = {"n_layers": 1, "n_features": 20, "d_model": 1, "prefixes": 3}
    with refuses(ConfigError, "prefixes", 3):
        from_dict(CrossLayerConfig, values)
    with refuses(ConfigError, "prefixes", "'a'"):
        from_dict(CrossLayerConfig, {**values, "prefixes": ["a"]})


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part | None, ...]
    best: Part | None
    counts: dict[str, int]


def test_configs_within_tuples_and_dicts_are_read_as_they_were_written() -> None:
    whole = Whole(parts=(Part("a"), None, Part("b")), best=Part("a"), counts={"a": 1})
    assert from_dict(Whole, json.loads(json.dumps(to_dict(whole)))) == whole
    with refuses(ConfigError, "naem"):
        from_dict(Whole, {"parts": [{"naem": "a"}], "best": None, "counts": {}})
    with refuses(ConfigError, "one"):
        from_dict(Whole, {"parts": [], "best": None, "counts": {"a": "one"}})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (TrainingConfig(), "TrainingConfig()"),
        (TrainingConfig.of(batch_size=3), "TrainingConfig(data=DataConfig(batch_size=3))"),
        (
            CrossLayerConfig(n_layers=2, n_features=6, d_model=4, nonlinearity=TopKConfig(k=2)),
            "CrossLayerConfig(n_layers=2, n_features=6, d_model=4, nonlinearity=TopKConfig(k=2))",
        ),
    ],
    ids=["defaults", "nested", "required"],
)
def test_a_config_prints_the_settings_that_differ_from_their_defaults(config: object, text: str) -> None:
    assert repr(config) == text

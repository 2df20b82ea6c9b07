"""Configs survive JSON; a wrong key or a value of the wrong type is one clear sentence."""

from __future__ import annotations

import json

import pytest

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LossConfig,
    MoltConfig,
    TrainingConfig,
)
from open_clt.config_json import from_dict, to_dict
from open_clt.errors import ConfigError


@pytest.mark.parametrize(
    "config",
    [
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, nonlinearity=JumpReLUConfig(bandwidth=0.5)),
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, reach=2, nonlinearity=BatchTopKConfig(k=3)),
        CrossLayerConfig(n_layers=3, n_features=40, d_model=4, prefixes=(8, 20), input_hook="hook_resid_pre"),
        MoltConfig(n_layers=3, d_model=4, ranks=(4, 2), counts=(8, 16), skip=True),
        TrainingConfig(max_steps=10),
        TrainingConfig(loss=LossConfig(sparsity=L1SparsityConfig(coefficient=0.1), preactivation_on="all")),
    ],
)
def test_to_json_and_back_is_the_identity(config: CrossLayerConfig | MoltConfig | TrainingConfig) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"qwertz": 3}, "known are"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"batch_size": True}, "must be int"),
        ({"loss": {"sparsty": 1.0}}, "did you mean 'sparsity'"),
        ({"loss": {"sparsity": {"kind": "l2", "coefficient": 1.0}}}, "must be one of tanh, l1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_legal(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainingConfig, values)


def test_an_unknown_kind_lists_the_known() -> None:
    values = {"n_layers": 1, "n_features": 20, "d_model": 1, "nonlinearity": {"kind": "gelu"}}
    with pytest.raises(ConfigError, match="relu, jumprelu, topk, batchtopk"):
        from_dict(CrossLayerConfig, values)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="'d_model'"):
        from_dict(CrossLayerConfig, {"n_layers": 1, "n_features": 20})


def test_a_list_is_named_as_one() -> None:
    values = {"n_layers": 1, "n_features": 20, "d_model": 1, "prefixes": 3}
    with pytest.raises(ConfigError, match="prefixes is 3; it must be a list of int"):
        from_dict(CrossLayerConfig, values)
    with pytest.raises(ConfigError, match="prefixes is 'a'; it must be int"):
        from_dict(CrossLayerConfig, {**values, "prefixes": ["a"]})

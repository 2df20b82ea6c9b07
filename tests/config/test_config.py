"""Configs: an illegal value raises an error that names the value and what is legal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import AblationClaim, FiresClaim, NamedSupernode, StandsClaim, SwapClaim
from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    DataConfig,
    JumpReLUConfig,
    L1SparsityConfig,
    LearningConfig,
    LossConfig,
    MoltConfig,
    NeuronConfig,
    ReportConfig,
    SamplingConfig,
    TanhSparsityConfig,
    TextsConfig,
    TopKConfig,
    TrainingConfig,
)
from open_clt.config.json import CheckedConfig, from_dict, to_dict
from open_clt.config.transcoder import words_of_layers
from open_clt.data.dataset.manifest import DatasetManifest, Harvested, HarvestedText, Scrambled, Shard
from open_clt.data.dataset.scrambling.state import Scrambling
from open_clt.errors import ConfigError
from open_clt.evaluation.calibration import Calibration, Logistic
from open_clt.explorer.session.actions import (
    AddSteer,
    Hide,
    HideDense,
    MakeGroup,
    Pin,
    RecordRun,
    RemoveSteer,
    Rename,
    Select,
    SetLabel,
    SetPercent,
    SetSteer,
    ShowGraph,
    Ungroup,
)
from open_clt.explorer.session.session import Effect, Group, Likely, Run, Steer
from open_clt.features.about import AboutRecords
from open_clt.features.labelling.service.endpoint import Endpoint
from open_clt.graphs.info import GraphInfo, GraphSettings, PruningSettings
from open_clt.graphs.targets import Direction, FeaturePreactivation, LogitDifference, SalientLogits, TokenLogits
from open_clt.replacement.interventions.intervention import Intervention
from tests.refusals import refuses

SHAPE: dict[str, Any] = {"n_layers": 3, "n_features": 40, "d_model": 4}


@pytest.mark.parametrize(
    ("make_config", "named"),
    [
        (lambda: CrossLayerConfig(**SHAPE, reach=4), "reach 4 1 n_layers 3"),
        (lambda: CrossLayerConfig(**SHAPE, layers=()), "layers empty"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(2, 1, 5)), "layers 2 1 5 rising"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(1, 1, 5)), "layers 1 5 once"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(-1, 1, 5)), "layers -1 0"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(1, 5)), "n_layers 3 layers 1 5 2"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(1, 5, 6), reach=4), "reach 4 n_layers 3"),
        (lambda: MoltConfig(n_layers=3, layers=(4,), d_model=4, ranks=(4,), counts=(8,)), "n_layers 3 layers 4 1"),
        (lambda: CrossLayerConfig(**SHAPE, layers=(1, 5, 8)).place_of(2), "layer 2 1 5 8"),
        (lambda: CrossLayerConfig(**SHAPE, prefixes=(20, 8)), "prefixes 20 8"),
        (lambda: CrossLayerConfig(**SHAPE, prefixes=(40,)), "prefixes n_features 40"),
        (lambda: CrossLayerConfig(**SHAPE, nonlinearity=TopKConfig(k=41)), "k 41 n_features"),
        (lambda: CrossLayerConfig(n_layers=3, n_features=40, d_model=0), "d_model 0 1"),
        (lambda: MoltConfig(n_layers=3, d_model=4, ranks=(4, 2), counts=(8,)), "ranks counts"),
        (lambda: DataConfig(batch_size=0), "batch_size 0"),
        (lambda: BatchTopKConfig(k=5, anneal_share=0.0), "anneal_share 0.0"),
        (lambda: TopKConfig(k=0), "k 0"),
        (lambda: TopKConfig(k_share=0.0), "k_share 0.0"),
        (lambda: BatchTopKConfig(k_share=1.5), "k_share 1.5"),
        (lambda: BatchTopKConfig(k_share=0.5, k=8), "k_share 0.5 k 8"),
        (lambda: TopKConfig(k_share=0.5, k_total=8, across_layers=True), "k_share 0.5 k_total 8"),
        (lambda: JumpReLUConfig(initial_threshold=-0.1), "initial_threshold -0.1"),
        (lambda: LossConfig(auxiliary=-1.0), "auxiliary -1.0"),
        (lambda: LossConfig(auxiliary_k=0), "auxiliary_k 0"),
        (lambda: L1SparsityConfig(coefficient=-1.0), "coefficient -1.0"),
        (lambda: TanhSparsityConfig(coefficient=1.0, steepness=0.0), "steepness 0.0"),
        (lambda: DataConfig(memory_limit=0.0), "memory_limit 0.0"),
        (lambda: DataConfig(seed=2**32), f"seed {2**32}"),
        (lambda: DataConfig(seed=2**70), f"seed {2**70}"),
        (lambda: SamplingConfig(seed=-1), "seed -1"),
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


def test_places_and_layers_of_the_model() -> None:
    chosen = CrossLayerConfig(**SHAPE, layers=[2, 5, 8], reach=2)  # type: ignore[arg-type]
    assert chosen.model_layers == (2, 5, 8)
    assert [chosen.place_of(layer) for layer in chosen.model_layers] == [0, 1, 2]
    assert [chosen.reach_of(place) for place in range(3)] == [2, 2, 1], "reach counts the chosen layers"
    assert chosen.layer_words == "2, 5 and 8"
    assert from_dict(CrossLayerConfig, to_dict(chosen)) == chosen
    every = CrossLayerConfig(**SHAPE)
    assert every.model_layers == (0, 1, 2)
    assert every.layer_words == "0 to 2"
    assert "layers" not in to_dict(every), "files are read by older releases"
    assert words_of_layers((3,)) == "3"
    assert words_of_layers((3, 4)) == "3 and 4"


@pytest.mark.parametrize("kind", [TopKConfig, BatchTopKConfig])
def test_a_share_of_the_features_becomes_their_number(kind: type[TopKConfig | BatchTopKConfig]) -> None:
    for share, k in ((0.1, 4), (0.06, 2), (1.0, 40), (1e-9, 1)):
        config = CrossLayerConfig(**SHAPE, nonlinearity=kind(k_share=share))
        assert config.nonlinearity == kind(k=k)
        assert from_dict(CrossLayerConfig, to_dict(config)) == config
        assert replace(config, n_features=80).nonlinearity == kind(k=k), "the config holds a number from then on"
    molt = MoltConfig(n_layers=3, d_model=4, ranks=(2,), counts=(8,), nonlinearity=kind(k_share=0.25))
    assert molt.nonlinearity == kind(k=2)


RUN = Run(steers=(), frozen="nothing", before=(), after=(), effects=(), kl_divergence=0.0)
HARVESTED: dict[str, Any] = {
    "model": "m", "vocabulary": "v", "n_layers": 1, "d_model": 2, "input_hook": "i", "target_hook": "t",
    "text": HarvestedText(source="x", context_length=8), "tokens": 8, "shard_tokens": 4,
}  # fmt: skip
SCRAMBLED: dict[str, Any] = {"seed": 1, "shard_tokens": 4, "manifest_sha256": "0" * 64}
NEEDED: dict[type[CheckedConfig], dict[str, Any]] = {
    CrossLayerConfig: SHAPE,
    MoltConfig: {"n_layers": 3, "d_model": 4, "ranks": (2,), "counts": (4,), "nonlinearity": TopKConfig(k=2)},
    NeuronConfig: {"n_layers": 3, "n_features": 8, "d_model": 4},
    TanhSparsityConfig: {"coefficient": 1.0},
    L1SparsityConfig: {"coefficient": 1.0},
    TokenLogits: {"tokens": (1,)},
    LogitDifference: {"positive": 1, "negative": 2},
    FeaturePreactivation: {"layer": 0, "feature": 1},
    Direction: {"vector": torch.ones(2)},
    Intervention: {"layer": 0, "position": 1, "feature": 2, "value": 0.0},
    Logistic: {"intercept": 0.0, "weights": (1.0, 2.0), "trials": 20, "share": 0.5},
    Calibration: {"transcoder_hash": "0"},
    AboutRecords: {
        "model": "m", "transcoder": "t", "transcoder_hash": "0", "text": "x", "tokens": 1, "contexts": 1,
        "context_length": 1, "from_start": False, "bos": "b", "encodes_first_position": False, "window": 1,
    },
    FiresClaim: {"supernode": "a"},
    StandsClaim: {"supernode": "a"},
    AblationClaim: {"supernode": "a", "output": " b"},
    SwapClaim: {
        "supernode": "a", "output": " b", "other": "c", "other_source": " d", "other_members": ("0:1:2",),
        "other_output": " e",
    },
    NamedSupernode: {"name": "a", "members": ("0:1:2",)},
    Circuit: {
        "model": "m", "transcoder_hash": "0", "prompt": "a", "source": 1, "supernodes": (), "claims": (),
    },
    Endpoint: {"url": "http://127.0.0.1/v1", "model": "m"},
    Group: {"name": "g", "members": ("0:1:2",)},
    Steer: {"name": "s", "members": ("0:1:2",)},
    Likely: {"token": " a", "probability": 0.5},
    Effect: {"name": " a", "predicted": 0.5, "measured": 0.25},
    Run: {"steers": (), "frozen": "nothing", "before": (), "after": (), "effects": (), "kl_divergence": 0.0},
    ShowGraph: {"graph": "g"},
    SetPercent: {"percent": 50},
    Hide: {"shapes": ("error",)},
    HideDense: {"densest": 0.5},
    Select: {},
    Pin: {"node": "0:1:2"},
    MakeGroup: {"name": "g", "members": ("0:1:2", "0:1:3")},
    Ungroup: {"name": "g"},
    Rename: {"name": "g", "new_name": "h"},
    SetLabel: {"feature": "L0/1", "text": "t"},
    AddSteer: {"steer": Steer(name="s", members=("0:1:2",))},
    SetSteer: {"index": 0, "steer": Steer(name="s", members=("0:1:2",))},
    RemoveSteer: {"index": 0},
    RecordRun: {"run": RUN},
    HarvestedText: {"source": "x", "context_length": 8},
    Harvested: HARVESTED,
    Scrambled: SCRAMBLED,
    Scrambling: {"scrambled": Scrambled(**SCRAMBLED), "run_tokens": 1},
    Shard: {"file": "a", "tokens": 1, "sha256": "0" * 64},
    DatasetManifest: {"harvested": Harvested(**HARVESTED), "shards": (), "tokens": 0, "statistics_sha256": "0" * 64},
    GraphInfo: {
        "model": "m", "transcoder": None, "prompt": "a", "tokens": (1,), "token_strings": ("a",), "target_names": (),
        "n_layers": 1, "n_active_features": 0, "compatible": False,
    },
}  # fmt: skip
"""The settings without a default of those configs that have some."""


def test_every_config_checks_its_types() -> None:
    assert {DataConfig, GraphInfo, GraphSettings, PruningSettings, SalientLogits} < set(CheckedConfig.__subclasses__())


@pytest.mark.parametrize("kind", CheckedConfig.__subclasses__(), ids=lambda kind: kind.__name__)
def test_a_value_of_a_wrong_type_is_named_when_a_config_is_made(kind: type[CheckedConfig]) -> None:
    needed = NEEDED.get(kind, {})
    kind(**needed)
    for entry in fields(kind):  # pyright: ignore[reportArgumentType]
        for value in (object(), 1j, b"x"):
            with refuses(ConfigError, f"{kind.__name__}.{entry.name}"):
                kind(**{**needed, entry.name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2.5}, {"batch_size": True}, {"batch_size": "8"}, {"learning_rate": "x"}, {"betas": 3},
        {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"betas": (0.9,)}, {"betas": (0.9, "x")},
        {"held_out_contexts": "3"}, {"seed": 2**70}, {"loss": 3}, {"schedule": "foo"}, {"storage_dtype": "int8"},
        {"schedule": ["constant"]}, {"every": None}, {"source": 3}, {"streaming": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_of_a_training_run_is_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError) as raised:
        TrainingConfig.of(**settings)
    assert f".{name}" in str(raised.value)


def test_numbers_of_numpy_lists_and_paths_become_plain_values() -> None:
    config = TrainingConfig.of(
        batch_size=np.int64(8), learning_rate=np.float32(0.5), betas=[0.5, 0.25], source=Path("a/b")
    )
    assert (config.data.batch_size, type(config.data.batch_size)) == (8, int)
    assert (config.learning.learning_rate, type(config.learning.learning_rate)) == (0.5, float)
    assert config.learning.betas == (0.5, 0.25)
    assert config.texts.source == str(Path("a/b"))


def test_a_long_wrong_value_is_cut() -> None:
    with refuses(ConfigError, "TextsConfig.column") as raised:
        TextsConfig(column=["x" * 1000])  # pyright: ignore[reportArgumentType]
    assert len(str(raised.value)) < 200

"""Settings of a TrainingConfig that a run from Python would ignore are refused, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from open_clt.config import LossConfig, MoltConfig, TanhSparsityConfig, TrainingConfig
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.training.data.activations import model_on
from open_clt.training.run import OwnParts, train_on_activations
from tests.refusals import refuses
from tests.training.own import AbsoluteErrors
from tests.training.synthetic import quick_training, relu_mlps, small_transcoder

NO_SPARSITY = LossConfig(sparsity=TanhSparsityConfig(coefficient=0.0, warmup=0.1))
SPARSITY = LossConfig(sparsity=TanhSparsityConfig(coefficient=1.0))


@pytest.mark.parametrize("name", ["source", "column", "subset", "split"])
def test_a_source_of_texts_is_refused_beside_texts_or_contexts(name: str, tiny_gpt2: LanguageModel) -> None:
    training = TrainingConfig.of(**{name: "validation"})
    for given in (["The cat sat."], torch.ones(3, 128, dtype=torch.long)):
        with refuses(ConfigError, f"texts.{name}", "'validation'"):
            model_on(tiny_gpt2, given, training)


def test_settings_of_contexts_are_refused_beside_contexts_of_another_length(tiny_gpt2: LanguageModel) -> None:
    contexts = torch.ones(3, 16, dtype=torch.long)
    model_on(tiny_gpt2, contexts, TrainingConfig.of(context_length=16))
    model_on(tiny_gpt2, contexts, TrainingConfig.of())
    with refuses(ConfigError, "data.context_length", 24, 16):
        model_on(tiny_gpt2, contexts, TrainingConfig.of(context_length=24))
    with refuses(ConfigError, "texts.from_start"):
        model_on(tiny_gpt2, contexts, TrainingConfig.of(from_start=True))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("training", "own", "named"),
    [
        (lambda: quick_training(held_out_contexts=5), OwnParts(), "texts.held_out_contexts"),
        (lambda: quick_training(harvest_batch_size=4), OwnParts(), "data.harvest_batch_size"),
        (lambda: quick_training(loss=SPARSITY), OwnParts(loss=AbsoluteErrors()), "learning.loss.sparsity"),
        (lambda: quick_training(learning_rate=0.5), OwnParts(optimizer=sgd), "learning.learning_rate"),
        (lambda: quick_training(loss=LossConfig(preactivation_on="all")), OwnParts(), "learning.loss.preactivation_on"),
        (
            lambda: quick_training(loss=LossConfig(auxiliary=0.0, auxiliary_k=8)),
            OwnParts(),
            "learning.loss.auxiliary_k",
        ),
        (lambda: quick_training(loss=NO_SPARSITY), OwnParts(), "learning.loss.sparsity.warmup"),
        (lambda: quick_training(every=5), OwnParts(), "checkpoints.every"),
    ],
)
def test_settings_are_refused_beside_what_replaces_them(
    training: Callable[[], TrainingConfig], own: OwnParts, named: str
) -> None:
    with refuses(ConfigError, named):
        train_on_activations(relu_mlps(300), small_transcoder(), training(), progress=False, own=own)


def test_a_price_of_distance_is_refused_where_features_write_to_one_layer() -> None:
    training = quick_training(loss=LossConfig(distance_penalty=0.1))
    one_layer = replace(small_transcoder(), reach=1)
    molt = MoltConfig(n_layers=one_layer.n_layers, d_model=one_layer.d_model, ranks=(1,), counts=(64,))
    for transcoder in (one_layer, molt):
        with refuses(ConfigError, "learning.loss.distance_penalty", "own layer"):
            train_on_activations(relu_mlps(300), transcoder, training, progress=False)

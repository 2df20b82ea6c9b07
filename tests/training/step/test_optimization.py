"""The optimizer takes the steps of Adam with its settings, and gradients are clipped at the norm that is set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from open_clt.config import LearningConfig
from open_clt.training.run import OwnParts, train_on_activations
from open_clt.training.step.optimization import adam
from tests.training.synthetic import quick_learning, quick_training, relu_mlps, small_transcoder


class Watch(Callback):
    """Records the optimizer, and the norm of the gradients of each step."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
        self.optimizer = trainer.optimizers[0]
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        self.norms.append(nn.utils.get_total_norm(gradients).item())


def adam_by_hand(start: float, gradients: list[float], config: LearningConfig) -> float:
    """Adam with decoupled decay (Kingma & Ba, 2015, algorithm 1; Loshchilov & Hutter, 2019, algorithm 2)."""
    (beta1, beta2), rate = config.betas, config.learning_rate
    weight, first, second = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        weight -= rate * config.weight_decay * weight
        weight -= rate * first / (1 - beta1**step) / ((second / (1 - beta2**step)) ** 0.5 + 1e-8)
    return weight


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.7)])
def test_steps_are_those_of_adam_with_these_decay_rates(
    betas: tuple[float, float], weight_decay: float, fused: bool
) -> None:
    config = quick_learning(learning_rate=0.1, betas=betas, weight_decay=weight_decay)
    start, gradients = [2.0, -3.0], [[1.0, 0.5], [-2.0, 0.1], [0.3, -4.0]]
    weights = nn.Parameter(torch.tensor(start))
    optimizer = adam([weights], config, fused=fused)
    for gradient in gradients:
        weights.grad = torch.tensor(gradient)
        optimizer.step()
    columns = zip(start, zip(*gradients, strict=True), strict=True)
    expected = [adam_by_hand(first, list(column), config) for first, column in columns]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def trained(watch: Watch, **settings: Any) -> Tensor:
    """The encoder weights after five steps of training."""
    config = quick_training(max_steps=5, **settings)
    return train_on_activations(
        relu_mlps(400), small_transcoder(), config, progress=False, own=OwnParts(callbacks=[watch])
    ).transcoder.W_enc.detach()


def test_decay_rates_and_weight_decay_change_the_weights() -> None:
    watch = Watch()
    plain, faster, decayed = (
        trained(watch, **settings) for settings in ({}, {"betas": (0.5, 0.7)}, {"weight_decay": 5.0})
    )
    assert not torch.allclose(plain, faster)
    assert decayed.norm() < 0.95 * plain.norm()
    assert isinstance(watch.optimizer, torch.optim.AdamW)


def test_only_gradients_above_the_limit_are_clipped() -> None:
    unlimited, low_limit, high_limit = Watch(), Watch(), Watch()
    trained(unlimited, gradient_clip=1e9)
    trained(low_limit, gradient_clip=0.25)
    trained(high_limit, gradient_clip=1.01 * max(unlimited.norms))
    assert min(unlimited.norms) > 1
    assert low_limit.norms == pytest.approx([0.25] * 5, rel=1e-4)
    assert high_limit.norms == unlimited.norms

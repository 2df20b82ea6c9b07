"""Adam in the backward pass makes the updates of Adam, with one gradient in memory at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from open_clt.training.step.adam_in_backward import AdamInBackward


def train(optimizer_class: type[torch.optim.Adam]) -> tuple[list[Tensor], list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = optimizer_class(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    losses: list[float] = []
    for _ in range(5):
        loss = model(torch.randn(4, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return [parameter.detach() for parameter in model.parameters()], losses


def test_its_updates_are_those_of_adam() -> None:
    weights, losses = train(AdamInBackward)
    expected_weights, expected_losses = train(torch.optim.Adam)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(losses, expected_losses)


def test_each_gradient_is_freed_after_its_update() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    AdamInBackward(model.parameters(), lr=0.1)
    gradients: list[int] = []
    for parameter in model.parameters():  # this hook runs after the hook of the optimizer
        parameter.register_post_accumulate_grad_hook(
            lambda _: gradients.append(sum(weights.grad is not None for weights in model.parameters()))
        )
    model(torch.randn(4, 6)).sum().backward()
    assert gradients == [0, 0, 0, 0]


def test_a_step_runs_its_closure_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = AdamInBackward([parameter], lr=0.1)

    def closure() -> float:
        loss = parameter.sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 3.0
    assert torch.allclose(parameter, torch.full((3,), 0.9))
    assert optimizer.step() is None

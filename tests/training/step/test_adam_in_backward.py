"""Updating in the backward pass is Adam, with one gradient alive at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from open_clt.training.step.adam_in_backward import AdamInBackward


def train(optimizer_class: type[torch.optim.Adam]) -> tuple[list[Tensor], list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = optimizer_class(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    found: list[float] = []
    for _ in range(5):
        loss = model(torch.randn(4, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        found.append(loss.item())
    return [parameter.detach() for parameter in model.parameters()], found


def test_its_updates_are_those_of_adam() -> None:
    (ours, our_losses), (theirs, their_losses) = train(AdamInBackward), train(torch.optim.Adam)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_losses, their_losses)


def test_no_gradient_outlives_its_update() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    AdamInBackward(model.parameters(), lr=0.1)
    alive: list[int] = []
    for parameter in model.parameters():  # called after the optimizer's own hook
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(other.grad is not None for other in model.parameters()))
        )
    model(torch.randn(4, 6)).sum().backward()
    assert alive == [0, 0, 0, 0]


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

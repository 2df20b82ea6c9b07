"""Cases of the training benchmark: the shape and data of a case, and the measuring of a side's steps.

Every side imports this module in its own Python environment, so the module needs only PyTorch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from attribution_process import measured
from torch import Tensor
from torch.optim import Optimizer

_FILE = "case.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, on which side, and how it is timed."""

    side: str
    nonlinearity: str
    layers: int
    d_model: int
    features: int
    tokens: int
    active: int
    precision: str
    clock: str = "wall"
    seed: int = 0

    def save(self, folder: Path) -> None:
        """Write the case into a folder, from which a side's process reads it."""
        (folder / _FILE).write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(folder: Path) -> Case:
        """Read the case that ``save`` wrote into a folder."""
        return Case(**json.loads((folder / _FILE).read_text()))

    @property
    def threshold(self) -> float:
        """The threshold that about ``active`` features per token and layer pass.

        On every side inputs are standard normal, and encoder weights are uniform between -1/sqrt(F) and 1/sqrt(F).
        """
        standard_deviation = (self.d_model / (3 * self.features)) ** 0.5
        return standard_deviation * NormalDist().inv_cdf(1 - self.active / self.features)

    def activations(self, device: str) -> tuple[Tensor, Tensor]:
        """Synthetic inputs and targets, each of shape (batch, layer, d_model)."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.tokens, self.layers, self.d_model)
        inputs, targets = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        return inputs, targets


class Steps:
    """The training steps of one side, which are run and measured on request."""

    def __init__(self, loss: Callable[[], Tensor], optimizer: Optimizer, device: str, clock: str) -> None:
        self.loss, self.optimizer, self.device = loss, optimizer, torch.device(device)
        self.clock = time.process_time if clock == "processor" else time.perf_counter
        self.step()  # the first step makes the optimizer's state

    def answer(self, request: dict[str, Any]) -> dict[str, float]:
        """Run one step and return its peak of memory, its time, or its time without the optimizer."""
        match request["kind"]:
            case "memory":
                loss, run = measured(self.step, self.device)
                return {"extra_memory_mb": run.extra_memory_mb, "loss": loss}
            case "step":
                return {"seconds": self.seconds(self.step)}
            case kind:
                assert kind == "backward"
                return {"seconds": self.seconds(self.backward)}

    def seconds(self, function: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._wait()
        started = self.clock()
        function()
        self._wait()
        return self.clock() - started

    def step(self) -> float:
        """Run one training step; returns its loss."""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def backward(self) -> None:
        """Run one step without the optimizer's update."""
        self.loss().backward()
        self.optimizer.zero_grad()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

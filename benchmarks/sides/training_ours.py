"""OpenCLT's sides of the training benchmark: a step with either optimizer, and the same step in plain PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from attribution_process import serve
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from training_case import Case, Steps

from open_clt.config import CrossLayerConfig, JumpReLUConfig, LearningConfig, TanhSparsityConfig, TopKConfig
from open_clt.training.step import losses
from open_clt.training.step.adam_in_backward import AdamInBackward
from open_clt.training.step.optimization import adam
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.sparse.codes import active_counts

sys.path.append(str(Path(__file__).parents[2]))
from tests.reference.dense_step import errors_densely

SPARSITY = 1e-3
BANDWIDTH = 0.1
"""Width of JumpReLU's kernel as a share of the threshold, so that only few inactive features get a gradient."""


class Training:
    """A transcoder, and its loss on one batch."""

    def __init__(self, case: Case, device: str) -> None:
        torch.set_float32_matmul_precision(case.precision)
        self.case = case
        self.inputs, self.targets = case.activations(device)
        jump = JumpReLUConfig(initial_threshold=case.threshold, bandwidth=BANDWIDTH * case.threshold)
        config = CrossLayerConfig(
            n_layers=case.layers, n_features=case.features, d_model=case.d_model,
            nonlinearity=TopKConfig(k=case.active) if case.nonlinearity == "topk" else jump,
        )  # fmt: skip
        self.transcoder = CrossLayerTranscoder(config).to(device)
        self.steps = Steps(self.loss, self.optimizer(), device, case.clock)

    def optimizer(self) -> Optimizer:
        """Adam, or on the side "frugal" the optimizer that keeps no gradients."""
        parameters, config = self.transcoder.parameters(), LearningConfig()
        if self.case.side == "frugal":
            return AdamInBackward(parameters, lr=config.learning_rate, betas=tuple(config.betas))
        return adam(parameters, config)

    def answer(self, request: dict[str, Any]) -> dict[str, float]:
        """Answer one request; its ``kind`` says what is measured."""
        if request["kind"] == "floor":
            return {"seconds": self.steps.seconds(self.encode)}
        if request["kind"] == "l0":
            return {"l0": self.l0()}
        return self.steps.answer(request)

    def loss(self) -> Tensor:
        """The loss of the batch: reconstruction, and with JumpReLU also sparsity."""
        jump = self.case.nonlinearity == "jumprelu"
        compute_errors = errors_densely if self.case.side == "dense" else CrossLayerTranscoder.errors
        features, errors, norms = compute_errors(self.transcoder, self.inputs, self.targets, norms=jump)
        loss = losses.reconstruction_loss(errors[-1])
        if norms is None:
            return loss
        return loss + SPARSITY * losses.sparsity_loss(features, norms, TanhSparsityConfig(coefficient=SPARSITY))

    @torch.no_grad()
    def encode(self) -> None:
        """Compute the encoder's products, which every step needs."""
        for layer, weight in enumerate(self.transcoder.W_enc):
            functional.linear(self.inputs[:, layer], weight)

    @torch.no_grad()
    def l0(self) -> float:
        """Mean number of active features per token and layer."""
        counts = [int(active_counts(layer).sum()) for layer in self.transcoder(self.inputs).features]
        return sum(counts) / (self.case.layers * self.case.tokens)


if __name__ == "__main__":
    serve(lambda: Training(Case.load(Path(sys.argv[1])), sys.argv[2]).answer)

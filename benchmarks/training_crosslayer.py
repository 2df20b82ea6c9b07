"""One side of the training benchmark: crosslayer-coding (PyPI's decode-clt 0.0.1), its own model, loss and optimizer.

It runs in an environment of its own. The step is its trainer's: features once for the loss, and once more inside the
model's forward pass. Its pre-activation loss is switched off, for it would encode a third time; its sparsity penalty is
on for JumpReLU only, as ours.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from attribution_process import serve
from clt.config import CLTConfig, TrainingConfig
from clt.models.clt import CrossLayerTranscoder
from clt.training.losses import LossManager
from torch import Tensor
from training_case import Case, Steps


class Training:
    """Its transcoder, and its loss of one batch."""

    def __init__(self, case: Case, device: str) -> None:
        torch.set_float32_matmul_precision(case.precision)
        torch.manual_seed(case.seed)
        inputs, targets = case.activations(device)
        self.inputs, self.targets = (dict(enumerate(part.unbind(1))) for part in (inputs, targets))
        config = CLTConfig(
            num_features=case.features, num_layers=case.layers, d_model=case.d_model, activation_fn=case.nonlinearity,
            jumprelu_threshold=case.threshold, topk_k=case.active * case.layers,
        )  # fmt: skip
        self.model = CrossLayerTranscoder(config, process_group=None, device=torch.device(device))
        settings = TrainingConfig(
            learning_rate=1e-4, training_steps=1000, activation_path="none", preactivation_coef=0.0,
            sparsity_lambda=1e-3 if case.nonlinearity == "jumprelu" else 0.0,
        )  # fmt: skip
        self.losses = LossManager(settings)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        self.steps = Steps(self.loss, optimizer, device, case.clock)

    def loss(self) -> Tensor:
        """What its trainer computes for a batch, in the middle of a training."""
        self.model.decoder_module._cached_decoder_norms = None  # as its trainer does after every step
        features = self.model.get_feature_activations(self.inputs)
        return self.losses.compute_total_loss(
            self.model, self.inputs, self.targets, 500, 1000, precomputed_activations=features
        )[0]


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    serve(lambda: Training(Case.load(Path(sys.argv[1])), sys.argv[2]).steps.answer)

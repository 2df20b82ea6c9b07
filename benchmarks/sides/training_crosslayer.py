"""Crosslayer-coding's side of the training benchmark: the model, loss and optimizer of PyPI's decode-clt 0.0.1.

This side runs in a separate Python environment. Its step is that of crosslayer-coding's trainer, which computes the
features once for the loss and once more inside the model's forward pass. The pre-activation loss is switched off,
because it would encode a third time. The sparsity penalty is on for JumpReLU only, as on our side.
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
    """Crosslayer-coding's transcoder, and its loss on one batch."""

    def __init__(self, case: Case, device: str) -> None:
        torch.set_float32_matmul_precision(case.precision)
        torch.manual_seed(case.seed)
        inputs, targets = case.activations(device)
        self.inputs, self.targets = (dict(enumerate(tensor.unbind(1))) for tensor in (inputs, targets))
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
        """The loss that crosslayer-coding's trainer computes for a batch in the middle of a training run."""
        self.model.decoder_module._cached_decoder_norms = None  # crosslayer-coding's trainer does this after every step
        features = self.model.get_feature_activations(self.inputs)
        return self.losses.compute_total_loss(
            self.model, self.inputs, self.targets, 500, 1000, precomputed_activations=features
        )[0]


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    serve(lambda: Training(Case.load(Path(sys.argv[1])), sys.argv[2]).steps.answer)

"""Classes and functions such as users bring, for tests that name them by ``class_path``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from open_clt.config import CrossLayerConfig
from open_clt.data.harvest import ActivationBatch
from open_clt.training.step.module import Step
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.sparse.codes import LayerFeatures
from open_clt.transcoders.sparse.products import Product
from tests.tiny_models import TEXTS
from tests.training.synthetic import relu_mlps


class OwnTranscoder(CrossLayerTranscoder):
    """A user's own architecture: decoders start at ``size`` times their usual size."""

    def __init__(self, config: CrossLayerConfig, *, seed: int = 0, size: float = 1.0) -> None:
        super().__init__(config, seed=seed)
        with torch.no_grad():
            for table in self.W_dec:
                table.mul_(size)


class Muffled(CrossLayerTranscoder):
    """A user's own architecture with the tensors of a built-in one; its features write ``share`` times as much."""

    def __init__(self, config: CrossLayerConfig, *, seed: int = 0, share: float = 0.5) -> None:
        super().__init__(config, seed=seed)
        self.share = share

    def written(self, features: LayerFeatures, source: int, standard: Tensor) -> Product | Tensor:
        return self.share * super().written(features, source, standard)


class Gated(CrossLayerTranscoder):
    """A user's own architecture with an additional tensor."""

    def __init__(self, config: CrossLayerConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.gate = nn.Parameter(torch.ones(config.n_layers))


class AbsoluteErrors:
    """A user's own loss."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, step: Step) -> Tensor:
        assert 0 <= step.progress < 1
        assert step.inputs.shape == step.targets.shape
        return self.weight * step.errors[-1].abs().sum((1, 2)).mean()


class OwnStore:
    """A user's own store of activations."""

    def __init__(self, tokens: int = 640) -> None:
        self.n_tokens = tokens

    def __iter__(self) -> Iterator[ActivationBatch]:
        return iter(relu_mlps(self.n_tokens))


class PressCtrlC(Callback):
    """Sends the signal of Ctrl-C after a given number of batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.fit_loop.batch_idx + 1 == self.batches:
            os.kill(os.getpid(), signal.SIGINT)


class Precision(Callback):
    """Records the precision of matrix products during training."""

    seen: ClassVar[set[str]] = set()

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.seen.add(torch.get_float32_matmul_precision())


class NoteLogger(Logger):
    """A logger that writes to the current directory by default, as WandB's does."""

    name = version = "note"

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self.path = Path(save_dir) / "note.txt"

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(str(step))


def texts(number: int) -> list[str]:
    """A user's own texts: ``number`` times the texts of the tiny models."""
    return [text for _ in range(number) for text in TEXTS]

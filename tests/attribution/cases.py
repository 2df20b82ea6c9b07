"""Random transcoders for the tiny models, of every kind that attribution must handle."""

from __future__ import annotations

from dataclasses import replace

import torch

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    JumpReLUConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
)
from open_clt.models.cross_layer import CrossLayerTranscoder

PROMPT = "The cat sat on the dog"

KINDS: dict[str, CrossLayerConfig] = {}


def _kind(name: str, nonlinearity: NonlinearityConfig, input_hook: str, reach: int | None, skip: bool) -> None:
    KINDS[name] = CrossLayerConfig(
        n_layers=3,
        n_features=16,
        d_model=32,
        reach=reach,
        skip=skip,
        nonlinearity=nonlinearity,
        input_hook=input_hook,  # type: ignore[arg-type]
    )


_kind("clt", TopKConfig(k=3), "hook_resid_mid", None, False)
_kind("normalised clt", BatchTopKConfig(k=3), "ln2.hook_normalized", None, False)
_kind("per-layer", JumpReLUConfig(initial_threshold=0.5), "ln2.hook_normalized", 1, False)
_kind("skip, reach 2", ReLUConfig(), "hook_resid_mid", 2, True)
_kind("normalised skip", TopKConfig(k=3), "ln2.hook_normalized", 1, True)


@torch.no_grad()
def random_transcoder(kind: str, seed: int = 0, *, use_first_position: bool = False) -> CrossLayerTranscoder:
    """A transcoder whose biases, skip path and standardisation all matter."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor, scale: float, mean: float = 0.0) -> None:
        tensor.copy_(mean + scale * torch.randn(tensor.shape, generator=generator))

    transcoder = CrossLayerTranscoder(replace(KINDS[kind], use_first_position=use_first_position), seed=seed)
    fill(transcoder.b_enc, 0.3, -0.2)
    fill(transcoder.b_dec, 0.3)
    if transcoder.W_skip is not None:
        fill(transcoder.W_skip, 0.1)
    stats = transcoder.standardisation
    fill(stats.input_mean, 0.2)
    fill(stats.target_mean, 0.2)
    stats.input_scale.copy_(torch.tensor([0.8, 1.3, 1.1]))
    stats.target_scale.copy_(torch.tensor([1.2, 0.7, 0.9]))
    return transcoder.eval()

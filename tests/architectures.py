"""Every kind of transcoder, small, with every bias and statistic away from its default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    MoltConfig,
    NonlinearityConfig,
    TopKConfig,
    TranscoderConfig,
)
from open_clt.models.make import make_transcoder
from open_clt.models.transcoder import Transcoder

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "clt": {},
    "reach 2": {"reach": 2},
    "per layer": {"reach": 1},
    "skip": {"reach": 1, "skip": True},
    "sae": {"reach": 1, "input_hook": "hook_resid_post", "target_hook": "hook_resid_post"},
    "matryoshka clt": {"prefixes": (7, 20)},
    "matryoshka skip": {"reach": 1, "skip": True, "prefixes": (10,)},
    "matryoshka sae": {"reach": 1, "prefixes": (12,), "input_hook": "attn.hook_out", "target_hook": "attn.hook_out"},
    "molt": {"ranks": (4, 2, 1), "counts": (4, 8, 16)},
    "molt with skip": {"ranks": (3,), "counts": (24,), "skip": True},
}


def architecture(
    name: str,
    *,
    n_layers: int = 3,
    d_model: int = 8,
    n_features: int = 40,
    nonlinearity: NonlinearityConfig | None = None,
    **settings: Any,
) -> TranscoderConfig:
    """The config of a kind of transcoder, TopK by default."""
    chosen = {**ARCHITECTURES[name], **settings, "nonlinearity": nonlinearity or TopKConfig(k=5)}
    if "ranks" in chosen:
        return MoltConfig(n_layers=n_layers, d_model=d_model, **chosen)
    return CrossLayerConfig(n_layers=n_layers, d_model=d_model, n_features=n_features, **chosen)


def random_architecture(config: TranscoderConfig, *, seed: int = 1) -> Transcoder:
    """A random transcoder in inference mode; BatchTopK has seen a batch, and has thresholds."""
    transcoder = make_transcoder(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*transcoder.named_parameters(), *transcoder.standardisation.named_buffers()]:
            if name.startswith(("b_", "W_skip")) or name.endswith("mean"):
                tensor.normal_(0, 0.3, generator=generator)
            elif name.endswith("scale"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif name.startswith("W_"):
                tensor.mul_(3)  # untrained weights are small: what features write would drown in the biases
        if isinstance(config.nonlinearity, BatchTopKConfig):
            transcoder.train()(torch.randn(60, config.n_layers, config.d_model, generator=generator))
    return transcoder.eval()


def with_nonlinearity(config: TranscoderConfig, nonlinearity: NonlinearityConfig) -> TranscoderConfig:
    """The same kind with another nonlinearity."""
    return replace(config, nonlinearity=nonlinearity)

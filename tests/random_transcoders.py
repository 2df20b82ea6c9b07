"""Small random transcoders of every kind, with random biases and statistics in place of the defaults.

    random_architecture(architecture("molt"))     a transcoder of one kind, for tests without a language model
    random_transcoder(tiny_gpt2, reach=1)         a cross-layer transcoder that fits a language model
    exact_transcoder(folder)                      a transcoder that equals the MLPs of a GPT-2 with ReLU

An MLP ``W_out relu(W_in x + b)`` is a transcoder. With the exact transcoder, a replacement model equals the language
model, and an attribution graph has no errors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from open_clt.config import (
    BatchTopKConfig,
    CrossLayerConfig,
    MoltConfig,
    NonlinearityConfig,
    ReLUConfig,
    TopKConfig,
    TranscoderConfig,
)
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.nonlinearities import FixedJumpReLU, TopK
from open_clt.transcoders.transcoder import Transcoder

TranscoderType = TypeVar("TranscoderType", bound=Transcoder)

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
    """The config of one of ``ARCHITECTURES``, with TopK by default."""
    values = {**ARCHITECTURES[name], **settings, "nonlinearity": nonlinearity or TopKConfig(k=5)}
    if "ranks" in values:
        return MoltConfig(n_layers=n_layers, d_model=d_model, **values)
    return CrossLayerConfig(n_layers=n_layers, d_model=d_model, n_features=n_features, **values)


@torch.no_grad()
def randomised(transcoder: TranscoderType, *, seed: int) -> TranscoderType:
    """The same transcoder with random biases, skip paths, statistics, fixed thresholds and offsets of TopK."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*transcoder.named_parameters(), *transcoder.standardisation.named_buffers()]:
        if name.startswith(("b_", "W_skip")) or name.endswith("mean"):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith("scale"):
            tensor.uniform_(0.5, 2.0, generator=generator)
    if isinstance(transcoder.nonlinearity, FixedJumpReLU):
        transcoder.nonlinearity.thresholds.uniform_(-0.5, 1.5, generator=generator)
    if isinstance(transcoder.nonlinearity, TopK) and transcoder.nonlinearity.config.offsets:
        transcoder.nonlinearity.offsets.normal_(0, 0.5, generator=generator)
    return transcoder


def random_architecture(config: TranscoderConfig, *, seed: int = 2) -> Transcoder:
    """A random transcoder in inference mode; BatchTopK has thresholds from one batch."""
    transcoder = randomised(make_transcoder(config, seed=seed), seed=seed + 1)
    if isinstance(config.nonlinearity, BatchTopKConfig):
        generator = torch.Generator().manual_seed(seed + 2)
        with torch.no_grad():
            transcoder.train()(torch.randn(60, config.n_layers, config.d_model, generator=generator))
    return transcoder.eval()


def random_transcoder(model: LanguageModel, *, n_features: int = 40, seed: int = 2, **settings: Any) -> Transcoder:
    """A random cross-layer transcoder that fits a language model, with TopK by default."""
    values = {"nonlinearity": TopKConfig(k=6), **settings}
    config = CrossLayerConfig(n_layers=model.n_layers, d_model=model.d_model, n_features=n_features, **values)
    return random_architecture(config, seed=seed)


def exact_transcoder(folder: Path, *, use_first_position: bool = False) -> CrossLayerTranscoder:
    """The transcoder that equals the MLPs of ``write_gpt2(folder, activation_function="relu")``."""
    weights = load_file(folder / "model.safetensors")
    layers = sum(name.endswith("mlp.c_fc.weight") for name in weights)
    d_model, width = weights["transformer.h.0.mlp.c_fc.weight"].shape
    config = CrossLayerConfig(
        n_layers=layers,
        n_features=width,
        d_model=d_model,
        reach=1,
        nonlinearity=ReLUConfig(),
        input_hook="ln2.hook_normalized",
        use_first_position=use_first_position,
    )
    transcoder = CrossLayerTranscoder(config).eval()
    with torch.no_grad():
        for layer in range(layers):
            block = f"transformer.h.{layer}"
            W_in, norm = weights[f"{block}.mlp.c_fc.weight"], weights[f"{block}.ln_2.weight"]
            # The hook is before the norm's weight and bias, so the encoder includes both.
            transcoder.W_enc[layer] = (W_in * norm[:, None]).T
            transcoder.b_enc[layer] = weights[f"{block}.ln_2.bias"] @ W_in + weights[f"{block}.mlp.c_fc.bias"]
            transcoder.W_dec[layer][:, 0] = weights[f"{block}.mlp.c_proj.weight"]
            transcoder.b_dec[layer] = weights[f"{block}.mlp.c_proj.bias"]
    return transcoder


def with_nonlinearity(config: TranscoderConfig, nonlinearity: NonlinearityConfig) -> TranscoderConfig:
    """The same config with another nonlinearity."""
    return replace(config, nonlinearity=nonlinearity)

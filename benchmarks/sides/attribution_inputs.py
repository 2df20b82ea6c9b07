"""Inputs of the attribution benchmark: a random GPT-2 and a random cross-layer transcoder, written to directories.

OpenCLT and circuit-tracer both read these layouts. Encoders are scaled to the norm of each layer's MLP input, and
thresholds are set on the benchmark's prompt, so that the requested number of features is active per layer and position.
The model's directory is called ``gpt2`` because circuit-tracer accepts only names of models that it knows, and reads a
model of such a name from the working directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig, JumpReLUConfig
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.nonlinearities import JumpReLU


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the random model and transcoder."""

    layers: int
    d_model: int
    heads: int
    vocabulary: int
    context: int
    features: int
    active: int
    """Mean number of active features per layer and position."""
    tokens: int
    """Length of the part of the prompt on which active features are counted."""
    seed: int


def make_inputs(folder: Path, shape: Shape) -> list[int]:
    """Write ``gpt2`` and ``transcoder`` into a folder; returns a prompt of the model's context length, BOS first."""
    generator = torch.Generator().manual_seed(shape.seed)
    model_directory = _write_model(folder / "gpt2", shape, generator)
    tokens = torch.randint(shape.vocabulary - 1, (shape.context,), generator=generator)
    tokens[0] = shape.vocabulary - 1
    transcoder = _random_transcoder(load_language_model(model_directory), tokens, shape, generator)
    save_circuit_tracer(transcoder, folder / "transcoder")
    return tokens.tolist()


def _write_model(folder: Path, shape: Shape, generator: torch.Generator) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    end_of_text = shape.vocabulary - 1
    config = GPT2Config(
        n_layer=shape.layers, n_embd=shape.d_model, n_head=shape.heads, vocab_size=shape.vocabulary,
        n_positions=shape.context, n_ctx=shape.context, bos_token_id=end_of_text, eos_token_id=end_of_text,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 0.1 * noise + ("bias" not in name)  # weights of norms are near one
        else:
            parameter.data = noise * (0.1 if "wte" in name or "wpe" in name else shape.d_model**-0.5)
    model.tie_weights()
    model.save_pretrained(folder)
    return write_tokenizer(folder, shape.vocabulary)


def write_tokenizer(folder: Path, vocabulary: int) -> Path:
    """Write a tokenizer with one word for each token: both sides need one, although no text is tokenized."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, **{f"w{token}": token for token in range(1, vocabulary - 1)}, "<end>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")
    pretrained.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # transformers 5 writes the name of a class that version 4, which circuit-tracer needs, does not have.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@torch.no_grad()
def _random_transcoder(
    model: LanguageModel, tokens: Tensor, shape: Shape, generator: torch.Generator
) -> CrossLayerTranscoder:
    config = CrossLayerConfig(
        n_layers=shape.layers,
        n_features=shape.features,
        d_model=shape.d_model,
        nonlinearity=JumpReLUConfig(),
        input_hook="hook_resid_mid",
        language_model="gpt2",
    )
    transcoder = CrossLayerTranscoder(config, seed=shape.seed)
    assert isinstance(transcoder.nonlinearity, JumpReLU)
    inputs = model.capture(tokens[None, : shape.tokens], config.input_hook).inputs[0, 1:]
    transcoder.b_dec.normal_(std=0.1, generator=generator)
    transcoder.b_enc.normal_(std=0.1, generator=generator)
    for layer in range(shape.layers):
        layer_inputs = inputs[:, layer]
        # Pre-activations have variance one, and features write about as much as the MLP does.
        transcoder.W_enc[layer].normal_(generator=generator).div_(layer_inputs.norm(dim=1).mean())
        transcoder.W_dec[layer].normal_(std=0.3 * shape.d_model**-0.5, generator=generator)
        pre_activations = torch.addmm(transcoder.b_enc[layer], layer_inputs, transcoder.W_enc[layer].T)
        # The threshold lies between two pre-activations. If it were equal to one, rounding would decide whether that
        # feature is active.
        neighbours = pre_activations.flatten().topk(shape.active * layer_inputs.shape[0] + 1).values[-2:]
        transcoder.nonlinearity.log_threshold[layer] = neighbours.mean().log()
    return transcoder.eval()

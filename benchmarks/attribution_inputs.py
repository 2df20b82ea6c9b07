"""What the attribution benchmark runs on: a random GPT-2 and a random cross-layer transcoder, as directories.

Both are in layouts that OpenCLT and circuit-tracer read. Encoders are scaled to what each layer's MLP reads, and
thresholds set on the benchmark's own prompt, so that as many features are active at a layer and position as asked for.
The model's folder is called ``gpt2``: circuit-tracer reads a model of that name from the working directory, and takes a
directory of another name for no model at all.
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
from open_clt.transcoders.formats.circuit_tracer import save_circuit_tracer
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
    """Features that are active at each layer and position, on average."""
    tokens: int
    """Length of the part of the prompt that they are counted on."""
    seed: int


def make_inputs(folder: Path, shape: Shape) -> list[int]:
    """Write ``gpt2`` and ``transcoder`` into a folder; returns a prompt as long as the model reads, BOS first."""
    generator = torch.Generator().manual_seed(shape.seed)
    model = _write_model(folder / "gpt2", shape, generator)
    tokens = torch.randint(shape.vocabulary - 1, (shape.context,), generator=generator)
    tokens[0] = shape.vocabulary - 1
    transcoder = _random_transcoder(load_language_model(model), tokens, shape, generator)
    save_circuit_tracer(transcoder, folder / "transcoder")
    return tokens.tolist()


def _write_model(folder: Path, shape: Shape, generator: torch.Generator) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    end = shape.vocabulary - 1
    config = GPT2Config(
        n_layer=shape.layers, n_embd=shape.d_model, n_head=shape.heads, vocab_size=shape.vocabulary,
        n_positions=shape.context, n_ctx=shape.context, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 0.1 * noise + ("bias" not in name)  # a norm's weight is near one
        else:
            parameter.data = noise * (0.1 if "wte" in name or "wpe" in name else shape.d_model**-0.5)
    model.tie_weights()
    model.save_pretrained(folder)
    return _write_tokenizer(folder, shape.vocabulary)


def _write_tokenizer(folder: Path, vocabulary: int) -> Path:
    """A word for every token: nobody reads them, but both sides ask for a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, **{f"w{number}": number for number in range(1, vocabulary - 1)}, "<end>": vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")
    fast.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # transformers 5 writes a class that 4, which circuit-tracer needs, does not know.
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
        read = inputs[:, layer]
        # Pre-activations of variance one, and features that write about as much as the MLP does.
        transcoder.W_enc[layer].normal_(generator=generator).div_(read.norm(dim=1).mean())
        transcoder.W_dec[layer].normal_(std=0.3 * shape.d_model**-0.5, generator=generator)
        found = torch.addmm(transcoder.b_enc[layer], read, transcoder.W_enc[layer].T)
        # Between two pre-activations: at one, rounding would decide whether that feature is active.
        around = found.flatten().topk(shape.active * read.shape[0] + 1).values[-2:]
        transcoder.nonlinearity.log_threshold[layer] = around.mean().log()
    return transcoder.eval()

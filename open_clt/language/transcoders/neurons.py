"""The neurons of a language model: its MLPs, read from the bridge as the layers of a transcoder.

The weights are read from the parts of an MLP that TransformerLens names in every family (``mlp.in``, ``mlp.gate`` and
``mlp.out``), and the activation function from the module that the library transformers calls. Whether this is all that
the MLP computes is checked on a few tokens, so a model whose MLPs are something else raises an error that names the
layer, and never gives a wrong graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from open_clt.config import MLP_OUTPUT_HOOK, NeuronConfig
from open_clt.errors import LanguageModelError
from open_clt.language.frozen_hooks import read_norm
from open_clt.language.language_model import LanguageModel
from open_clt.language.loading import TOLERANCE
from open_clt.transcoders.neurons.layer import NeuronLayer, OutputNorm
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder

_TOKENS = 8
"""Number of tokens of the check."""
_ACTIVATIONS = ("act", "act_fn", "activation_fn", "_activation_fn", "gelu_impl")
"""Names of the activation function in the MLPs of the families."""


@torch.no_grad()
def neurons_of(model: LanguageModel) -> NeuronTranscoder:
    """The MLP neurons of a model as a transcoder, which shares the model's weights.

    Raises LanguageModelError if the MLPs are not neurons, as in a mixture of experts.
    """
    layers = [_layer(model, layer) for layer in range(model.n_layers)]
    widths = sorted({len(layer.W_out) for layer in layers})
    if len(widths) > 1:
        raise _no_neurons(model, f"its layers have between {widths[0]} and {widths[-1]} neurons, not the same number")
    config = NeuronConfig(
        n_layers=model.n_layers,
        n_features=widths[0],
        d_model=model.d_model,
        gated=layers[0].W_gate is not None,
        language_model=model.name,
    )
    transcoder = NeuronTranscoder(config, layers).eval()
    _check(model, transcoder)
    return transcoder


def _layer(model: LanguageModel, layer: int) -> NeuronLayer:
    """One layer's MLP, with weights as views of the model's own."""
    block = model.bridge.blocks[layer]
    try:
        mlp = block.mlp
        parts = {name: getattr(mlp, name, None) for name in ("in", "gate", "out")}
        W_in, W_out = mlp.W_in.T, mlp.W_out
        W_gate = None if parts["gate"] is None else mlp.W_gate.T
    except AttributeError as error:
        raise _no_neurons(model, f"the MLP of layer {layer} has no weights of single neurons") from error
    biases = {name: _bias(part) for name, part in parts.items()}
    return NeuronLayer(
        W_in=W_in,
        b_in=biases["in"],
        W_gate=W_gate,
        b_gate=biases["gate"],
        W_out=W_out,
        b_out=biases["out"],
        activation=_activation(model, mlp, layer),
        factor=float(getattr(model.bridge.original_model.config, "residual_multiplier", 1.0)),
        norm=_output_norm(model, block),
    )


def _bias(part: Any) -> Tensor | None:
    return None if part is None else cast("Tensor | None", part.original_component.bias)


def _activation(model: LanguageModel, mlp: Any, layer: int) -> Callable[[Tensor], Tensor]:
    """The activation function of one MLP; raises LanguageModelError if it is not found, or not zero at zero."""
    owners = (mlp, getattr(mlp, "original_component", None))
    found = [getattr(owner, name, None) for owner in owners for name in _ACTIVATIONS]
    functions = [cast("Callable[[Tensor], Tensor]", function) for function in found if callable(function)]
    if not functions:
        raise _no_neurons(model, f"the activation function of layer {layer} is not known")
    at_zero = float(functions[0](torch.zeros(1, 1, device=model.device, dtype=model.dtype)).abs())
    if at_zero > 1e-4:
        raise _no_neurons(model, f"the activation function of layer {layer} is {at_zero:.1e} at zero, and not zero")
    return functions[0]


def _output_norm(model: LanguageModel, block: Any) -> OutputNorm | None:
    """The norm between an MLP and the residual stream; None for models without one."""
    norm = getattr(block, "ln2_post", None)
    if norm is None:
        return None
    read = read_norm(norm, torch.ones(1, 1, device=model.device))
    assert read.weight is not None
    bias = None if read.bias is None else read.bias.to(model.dtype)
    eps = float(getattr(model.bridge.cfg, "eps", 1e-5))
    return OutputNorm(read.weight.detach().to(model.dtype), bias, eps, read.centred)


def _check(model: LanguageModel, transcoder: NeuronTranscoder) -> None:
    """Compare the neurons' outputs with the MLPs' own; raises LanguageModelError if they differ."""
    tokens = torch.arange(_TOKENS, device=model.device)[None] % model.vocab_size
    captured = model.capture(tokens, transcoder.config.input_hook, MLP_OUTPUT_HOOK)
    inputs, outputs = captured.inputs[0], captured.targets[0]
    computed = transcoder.decode(transcoder.encode(inputs), inputs)
    deviations = (computed - outputs).float().norm(dim=(0, 2)) / outputs.float().norm(dim=(0, 2)).clamp(min=1e-30)
    worst = int(deviations.argmax())
    if not float(deviations[worst]) <= TOLERANCE.get(model.dtype, 1e-3):
        raise _no_neurons(
            model, f"the neurons of layer {worst} deviate from the output of its MLP by {float(deviations[worst]):.1e}"
        )


def _no_neurons(model: LanguageModel, reason: str) -> LanguageModelError:
    return LanguageModelError(
        f"The MLPs of {model.name} cannot be used as neurons: {reason}; use another language model, or train a "
        "transcoder."
    )

"""Slow attribution of neurons: autograd through the language model with stopped gradients, one backward pass per row.

Hooks hold attention patterns and norm denominators constant, and cut every MLP between its neurons and ``W_out``: what
``W_out`` reads is a leaf. A neuron is the product of its pre-activation and its gate, whose gradient is stopped; in a
gated MLP, it is the mean of two such products, each with the gradient of the other factor stopped. Nothing of
``open_clt.attribution``, ``linear_path`` or ``transcoders`` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from open_clt.language.language_model import LanguageModel


class SlowNeuronRow(NamedTuple):
    """The edges into one target."""

    neurons: Tensor
    """Edge of each neuron, of shape (layer, position, neuron)."""
    embeddings: Tensor
    positional: Tensor
    biases: Tensor
    """Edges of the biases, of shape (layer + 1,), summed over positions, because a bias is one parameter."""


class SlowNeurons:
    """The forward pass of one prompt, from which each row takes one backward pass."""

    def __init__(self, model: LanguageModel, tokens: Tensor) -> None:
        self.model = model
        self.pre: dict[str, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.leaves: dict[Any, Tensor] = {}
        self.entering: dict[str, Tensor] = {}
        self.biases = {
            name: parameter
            for name, parameter in model.bridge.original_model.named_parameters()
            if name.endswith("bias") and not self._is_of_neurons(parameter)
        }
        for parameter in self.biases.values():
            parameter.requires_grad_(True)
        with model.hooks(self._hooks()):
            self.logits = model.logits(tokens[None])[0]
        cap = float(getattr(model.bridge.cfg, "output_logits_soft_cap", None) or 0)
        if cap > 0:  # graphs explain the logits before their bound
            self.logits = cap * torch.atanh(self.logits / cap)

    def close(self) -> None:
        """Turn the gradients of the language model's parameters off again."""
        for parameter in self.biases.values():
            parameter.requires_grad_(False)

    def logit_row(self, token: int, position: int = -1) -> SlowNeuronRow:
        return self._row(self.logits[position, token] - self.logits[position].mean())

    def neuron_row(self, layer: int, position: int, neuron: int) -> SlowNeuronRow:
        return self._row(self._frozen(layer, position, neuron))

    def _frozen(self, layer: int, position: int, neuron: int) -> Tensor:
        value = self.values[layer][position, neuron]
        up = self.pre[f"in.{layer}"][position, neuron]
        if f"gate.{layer}" not in self.pre:
            return (value / up.detach()) * up
        gate = self.pre[f"gate.{layer}"][position, neuron]
        activated = value / up.detach()
        return ((activated / gate.detach()) * up.detach() * gate + activated * up) / 2

    def _row(self, target: Tensor) -> SlowNeuronRow:
        names = list(self.leaves)
        leaves = [self.leaves[name] for name in names] + list(self.biases.values())
        computed = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        partial = cast("tuple[Tensor | None, ...]", computed)
        pairs = zip(partial, leaves, strict=True)
        gradients = [torch.zeros_like(leaf) if part is None else part for part, leaf in pairs]
        by_leaf = dict(zip(names, gradients, strict=False))
        layers = range(self.model.n_layers)
        biases = torch.zeros(self.model.n_layers + 1)
        for (name, parameter), gradient in zip(self.biases.items(), gradients[len(names) :], strict=True):
            numbers = [int(part) for part in name.split(".") if part.isdigit()]
            biases[numbers[0] if numbers else -1] += float((parameter.detach() * gradient).sum())
        embedding, positional = by_leaf["embedding"], by_leaf.get("positional")
        return SlowNeuronRow(
            neurons=torch.stack([by_leaf[layer] * self.values[layer] for layer in layers]),
            embeddings=(embedding * self.entering["embedding"]).sum(-1),
            positional=torch.zeros(len(embedding))
            if positional is None
            else (positional * self.entering["positional"]).sum(-1),
            biases=biases,
        )

    def _is_of_neurons(self, parameter: Tensor) -> bool:
        """Whether a parameter is a bias of pre-activations, which is not a source."""
        mlps = [block.mlp for block in self.model.bridge.blocks]
        parts = [getattr(mlp, name, None) for mlp in mlps for name in ("in", "gate")]
        return any(part is not None and part.original_component.bias is parameter for part in parts)

    def _hooks(self) -> list[tuple[str, Callable[[Tensor], Tensor | None]]]:
        names = self.model.bridge.hook_dict
        hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [("embed.hook_out", self._enter("embedding"))]
        if "pos_embed.hook_out" in names:
            hooks.append(("pos_embed.hook_out", self._enter("positional")))
        hooks += [(name, torch.Tensor.detach) for name in names if name.endswith(("hook_pattern", "hook_scale"))]
        for layer in range(self.model.n_layers):
            mlp = f"blocks.{layer}.mlp"
            hooks += [
                (f"{mlp}.{part}.hook_out", self._keep(f"{part}.{layer}"))
                for part in ("in", "gate")
                if f"{mlp}.{part}.hook_out" in names
            ]
            hooks.append((f"{mlp}.out.hook_in", self._cut(layer)))
        return hooks

    def _enter(self, name: str) -> Callable[[Tensor], Tensor]:
        def enter(activation: Tensor) -> Tensor:
            self.entering[name] = activation[0].detach()
            self.leaves[name] = torch.zeros_like(self.entering[name], requires_grad=True)
            return activation.detach() + self.leaves[name]

        return enter

    def _keep(self, name: str) -> Callable[[Tensor], None]:
        return lambda activation: self.pre.__setitem__(name, activation[0])

    def _cut(self, layer: int) -> Callable[[Tensor], Tensor]:
        def cut(activation: Tensor) -> Tensor:
            self.values[layer] = activation[0].detach()
            self.leaves[layer] = torch.zeros_like(self.values[layer], requires_grad=True)
            return activation.detach() + self.leaves[layer]

        return cut

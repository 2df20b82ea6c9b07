"""Slow attribution: autograd through the language model, with one backward pass per target.

Hooks hold attention patterns, norm denominators and MLP outputs constant, and add a tensor of zeros to everything that
enters the residual stream. The target is then linear in what enters, and its gradient in the zeros is the coefficient.
Nothing of ``open_clt.attribution`` or ``linear_path`` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder


class SlowRow(NamedTuple):
    """The edges into one target."""

    features: dict[tuple[int, int, int], float]
    """Edge of each feature, by (layer, position, feature)."""
    errors: Tensor
    """Edges of the errors, of shape (layer, position)."""
    embeddings: Tensor
    positional: Tensor
    biases: Tensor
    """Edges of the biases, of shape (layer + 1,), summed over positions, because a bias is one parameter."""
    mlp_outputs: Tensor
    """Edges of the MLP outputs at unused positions, of shape (layer, first)."""
    total: float


class SlowAttribution:
    """The forward pass of one prompt, from which each row takes one backward pass."""

    def __init__(self, model: LanguageModel, transcoder: CrossLayerTranscoder, tokens: Tensor, first: int) -> None:
        self.model, self.transcoder, self.first = model, transcoder.folded().eval(), first
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self.entering: dict[str, Tensor] = {}
        self.biases = {
            name: parameter
            for name, parameter in model.bridge.original_model.named_parameters()
            if name.endswith("bias") and ".mlp." not in name
        }
        for parameter in self.biases.values():
            parameter.requires_grad_(True)
        with model.hooks(self._hooks()):
            self.logits = model.logits(tokens[None])[0]
        with torch.no_grad():
            stacked = torch.stack([self.inputs[layer][first:] for layer in range(model.n_layers)], dim=1)
            features = self.transcoder.encode(stacked)
            self.errors = torch.stack(
                [self.outputs[layer][first:] for layer in range(model.n_layers)], dim=1
            ) - self.transcoder.decode(features, stacked)
        self.features = {
            (layer, row + first, index): value
            for layer, active in enumerate(features)
            for row, index, value in zip(
                active.rows.tolist(), active.features.tolist(), active.values.tolist(), strict=True
            )
            if value != 0
        }

    def close(self) -> None:
        """Turn the gradients of the language model's parameters off again."""
        for parameter in self.biases.values():
            parameter.requires_grad_(False)

    def logit_row(self, token: int, position: int = -1) -> SlowRow:
        return self._row(self.logits[position, token] - self.logits[position].mean())

    def feature_row(self, layer: int, position: int, feature: int) -> SlowRow:
        return self._row(self.inputs[layer][position] @ self.transcoder.W_enc[layer, feature].detach())

    def _row(self, target: Tensor) -> SlowRow:
        names = list(self.leaves)
        leaves = [self.leaves[name] for name in names] + list(self.biases.values())
        partial = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(partial, leaves, strict=True)]
        by_leaf = dict(zip(names, gradients, strict=False))
        layers, first = self.model.n_layers, self.first
        mlp = torch.stack([by_leaf[f"mlp.{layer}"] for layer in range(layers)])
        biases = self._bias_terms(gradients[len(names) :])
        biases[:layers] += torch.einsum("lpd,ld->l", mlp[:, first:], self.transcoder.b_dec.detach())
        unused_outputs = torch.stack([self.outputs[layer][:first] for layer in range(layers)])
        positional = by_leaf.get("positional")
        return SlowRow(
            features={key: self._feature_edge(*key, value, mlp) for key, value in self.features.items()},
            errors=torch.nn.functional.pad((mlp[:, first:] * self.errors.transpose(0, 1)).sum(-1), (first, 0)),
            embeddings=(by_leaf["embedding"] * self.entering["embedding"]).sum(-1),
            positional=torch.zeros(mlp.shape[1])
            if positional is None
            else (positional * self.entering["positional"]).sum(-1),
            biases=biases,
            mlp_outputs=(mlp[:, :first] * unused_outputs).sum(-1),
            total=float(target.detach()),
        )

    def _feature_edge(self, layer: int, position: int, feature: int, value: float, mlp: Tensor) -> float:
        decoder = self.transcoder.W_dec[layer][feature].detach()
        return value * float((decoder * mlp[layer : layer + decoder.shape[0], position]).sum())

    def _bias_terms(self, gradients: list[Tensor]) -> Tensor:
        """The constant of the linear function, by layer: the sum of the biases times their gradients."""
        terms = torch.zeros(self.model.n_layers + 1)
        for (name, parameter), gradient in zip(self.biases.items(), gradients, strict=True):
            layers = [int(part) for part in name.split(".") if part.isdigit()]
            terms[layers[0] if layers else -1] += float((parameter.detach() * gradient).sum())
        return terms

    def _hooks(self) -> list[tuple[str, Callable[[Tensor], Tensor | None]]]:
        names = self.model.bridge.hook_dict
        hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [("embed.hook_out", self._enter("embedding"))]
        if "pos_embed.hook_out" in names:
            hooks.append(("pos_embed.hook_out", self._enter("positional")))
        hooks += [(name, torch.Tensor.detach) for name in names if name.endswith(("hook_pattern", "hook_scale"))]
        for layer in range(self.model.n_layers):
            hooks.append((self.model.hook_name(layer, self.transcoder.config.input_hook), self._read(layer)))
            hooks.append((self.model.hook_name(layer, "hook_mlp_out"), self._write(layer)))
        return hooks

    def _enter(self, name: str) -> Callable[[Tensor], Tensor]:
        """A hook that makes an entry into the residual stream constant, and adds a tensor of zeros to it."""

        def enter(activation: Tensor) -> Tensor:
            self.entering[name] = activation[0].detach()
            self.leaves[name] = torch.zeros_like(self.entering[name], requires_grad=True)
            return activation.detach() + self.leaves[name]

        return enter

    def _read(self, layer: int) -> Callable[[Tensor], None]:
        """A hook that stores what the encoder of a layer reads."""
        return lambda activation: self.inputs.__setitem__(layer, activation[0])

    def _write(self, layer: int) -> Callable[[Tensor], Tensor]:
        """A hook that makes the MLP output constant, except for the skip path, which is linear in the input."""

        def write(activation: Tensor) -> Tensor:
            self.outputs[layer] = activation[0].detach()
            leaf = torch.zeros_like(self.outputs[layer], requires_grad=True)
            self.leaves[f"mlp.{layer}"] = leaf
            constant = activation.detach() + leaf
            if self.transcoder.W_skip is None:
                return constant
            skip = self.inputs[layer] @ self.transcoder.W_skip[layer].detach().T
            zero_with_gradient = (skip - skip.detach()).clone()
            mask = (torch.arange(skip.shape[0]) >= self.first)[:, None]
            return constant + zero_with_gradient * mask

        return write

"""Attribution the slow and obvious way: autograd through the model itself, one backward pass per target.

Hooks hold attention patterns, norm denominators and MLP outputs at their values, and add a zero tensor wherever
something enters the residual stream; the gradient of a target with respect to that zero is the linear function that the
target is of whatever enters there. Nothing of ``open_clt.attribution`` or ``linear_path`` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder


class SlowRow(NamedTuple):
    """Edges into one target."""

    features: dict[tuple[int, int, int], float]
    """By (layer, position, feature)."""
    errors: Tensor
    """(layer, position)"""
    embeddings: Tensor
    positional: Tensor
    biases: Tensor
    """(layer + 1): summed over positions, because a bias is one parameter."""
    mlp_outputs: Tensor
    """(layer, first)"""
    total: float


class SlowAttribution:
    """One prompt, ready for one backward pass per target."""

    def __init__(self, model: LanguageModel, transcoder: CrossLayerTranscoder, tokens: Tensor, first: int) -> None:
        self.model, self.transcoder, self.first = model, transcoder.folded().eval(), first
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self.entering: dict[str, Tensor] = {}
        self.biases = {
            name: parameter
            for name, parameter in model.bridge.original_model.named_parameters()
            if name.endswith("bias") and ".mlp." not in name and ".ln_2." not in name
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
            for layer, found in enumerate(features)
            for row, index, value in zip(
                found.rows.tolist(), found.features.tolist(), found.values.tolist(), strict=True
            )
            if value != 0
        }

    def close(self) -> None:
        """The model's parameters need no gradient again."""
        for parameter in self.biases.values():
            parameter.requires_grad_(False)

    def logit_row(self, token: int, position: int = -1) -> SlowRow:
        return self._row(self.logits[position, token] - self.logits[position].mean())

    def feature_row(self, layer: int, position: int, feature: int) -> SlowRow:
        return self._row(self.inputs[layer][position] @ self.transcoder.W_enc[layer, feature].detach())

    def _row(self, target: Tensor) -> SlowRow:
        names = list(self.leaves)
        wanted = [self.leaves[name] for name in names] + list(self.biases.values())
        found = torch.autograd.grad(target, wanted, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, wanted, strict=True)]
        by_leaf = dict(zip(names, gradients, strict=False))
        layers, first = self.model.n_layers, self.first
        mlp = torch.stack([by_leaf[f"mlp.{layer}"] for layer in range(layers)])
        biases = self._bias_terms(gradients[len(names) :])
        biases[:layers] += torch.einsum("lpd,ld->l", mlp[:, first:], self.transcoder.b_dec.detach())
        whole = torch.stack([self.outputs[layer][:first] for layer in range(layers)])
        positional = by_leaf.get("positional")
        return SlowRow(
            features={key: self._feature_edge(*key, value, mlp) for key, value in self.features.items()},
            errors=torch.nn.functional.pad((mlp[:, first:] * self.errors.transpose(0, 1)).sum(-1), (first, 0)),
            embeddings=(by_leaf["embedding"] * self.entering["embedding"]).sum(-1),
            positional=torch.zeros(mlp.shape[1])
            if positional is None
            else (positional * self.entering["positional"]).sum(-1),
            biases=biases,
            mlp_outputs=(mlp[:, :first] * whole).sum(-1),
            total=float(target.detach()),
        )

    def _feature_edge(self, layer: int, position: int, feature: int, value: float, mlp: Tensor) -> float:
        decoder = self.transcoder.W_dec[layer][feature].detach()
        return value * float((decoder * mlp[layer : layer + decoder.shape[0], position]).sum())

    def _bias_terms(self, gradients: list[Tensor]) -> Tensor:
        """A linear function's constant is the sum of its parameters times their gradients."""
        terms = torch.zeros(self.model.n_layers + 1)
        for (name, parameter), gradient in zip(self.biases.items(), gradients, strict=True):
            numbers = [int(part) for part in name.split(".") if part.isdigit()]
            terms[numbers[0] if numbers else -1] += float((parameter.detach() * gradient).sum())
        return terms

    def _hooks(self) -> list[tuple[str, Callable[[Tensor], Tensor | None]]]:
        known = self.model.bridge.hook_dict
        hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = [("embed.hook_out", self._entry("embedding"))]
        if "pos_embed.hook_out" in known:
            hooks.append(("pos_embed.hook_out", self._entry("positional")))
        hooks += [(name, torch.Tensor.detach) for name in known if name.endswith(("hook_pattern", "hook_scale"))]
        for layer in range(self.model.n_layers):
            hooks.append((self.model.hook_name(layer, self.transcoder.config.input_hook), self._reads(layer)))
            hooks.append((self.model.hook_name(layer, "hook_mlp_out"), self._writes(layer)))
        return hooks

    def _entry(self, name: str) -> Callable[[Tensor], Tensor]:
        def enter(activation: Tensor) -> Tensor:
            self.entering[name] = activation[0].detach()
            self.leaves[name] = torch.zeros_like(self.entering[name], requires_grad=True)
            return activation.detach() + self.leaves[name]

        return enter

    def _reads(self, layer: int) -> Callable[[Tensor], None]:
        return lambda activation: self.inputs.__setitem__(layer, activation[0])

    def _writes(self, layer: int) -> Callable[[Tensor], Tensor]:
        """Take the MLP output as given, but for the skip path, which is linear in what the encoder reads."""

        def write(activation: Tensor) -> Tensor:
            self.outputs[layer] = activation[0].detach()
            leaf = torch.zeros_like(self.outputs[layer], requires_grad=True)
            self.leaves[f"mlp.{layer}"] = leaf
            given = activation.detach() + leaf
            if self.transcoder.W_skip is None:
                return given
            skipped = self.inputs[layer] @ self.transcoder.W_skip[layer].detach().T
            moving = (skipped - skipped.detach()).clone()
            mask = (torch.arange(moving.shape[0]) >= self.first)[:, None]
            return given + moving * mask

        return write

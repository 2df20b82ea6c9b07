"""The held model: a language model frozen at a prompt's values, in which the writes of one feature are removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import Node, NodeKind
from open_clt.language.language_model import Hook, LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.attribution.cases import PROMPT


def check_ablations(model: LanguageModel, transcoder: CrossLayerTranscoder) -> None:
    """Assert that every target changes by minus its edge when a feature is ablated, for every twelfth feature."""
    graph = attribute(model, transcoder, PROMPT)
    held = HeldModel(model, transcoder, graph)
    rows = (~graph.nodes.total.isnan()).nonzero().flatten()
    before, adjacency = held.totals(None), graph.adjacency()
    torch.testing.assert_close(before, graph.nodes.total[rows], atol=1e-4, rtol=1e-4)
    for source in graph.of_kind(NodeKind.FEATURE).nonzero().flatten().tolist()[::12]:
        change = held.totals(graph.node(source)) - before
        torch.testing.assert_close(change, -adjacency[rows, source], atol=1e-4, rtol=1e-3)


class HeldModel:
    """A model whose attention patterns, norm denominators and MLP outputs are frozen at a prompt's values."""

    def __init__(self, model: LanguageModel, transcoder: CrossLayerTranscoder, graph: AttributionGraph) -> None:
        self.model, self.graph, self.raw = model, graph, transcoder.folded()
        self.tokens = torch.tensor([graph.info.tokens])
        frozen = [name for name in model.bridge.hook_dict if name.endswith(("_pattern", "_scale", "hook_mlp_out"))]
        self.values = model.run_with_cache(self.tokens, frozen).activations
        self.before = model.capture(self.tokens, self.raw.config.input_hook).inputs[0]
        self.inputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def totals(self, ablated: Node | None) -> Tensor:
        """Every target's total without the writes of the ablated feature, if any."""
        with self.model.hooks(self._hooks(ablated)):
            logits = self.model.logits(self.tokens)[0]
        rows = (~self.graph.nodes.total.isnan()).nonzero().flatten().tolist()
        nodes = [self.graph.node(row) for row in rows]
        return torch.stack([self._total(node, logits) for node in nodes])

    @torch.no_grad()
    def queries(self, layer: int, ablated: Node | None) -> Tensor:
        """The projected queries of a layer, (head, position, d_head), without the writes of the ablated feature."""
        seen: list[Tensor] = []
        with self.model.hooks([*self._hooks(ablated), (f"blocks.{layer}.attn.hook_q", seen.append)]):
            self.model.logits(self.tokens)
        return seen[0][0].transpose(0, 1)

    def _hooks(self, ablated: Node | None) -> list[Hook]:
        hooks: list[Hook] = [(name, self._frozen(name)) for name in self.values if not name.endswith("hook_mlp_out")]
        for layer in range(self.model.n_layers):
            input_hook = self.model.hook_name(layer, self.raw.config.input_hook)
            hooks.append((input_hook, lambda x, layer=layer: self.inputs.__setitem__(layer, x[0])))
            hooks.append((self.model.hook_name(layer, "hook_mlp_out"), self._mlp(layer, ablated)))
        return hooks

    def _total(self, node: Node, logits: Tensor) -> Tensor:
        if node.kind is NodeKind.FEATURE:
            return self.inputs[node.layer][node.position] @ self.raw.W_enc[node.layer, node.index]
        cap = self.model.bridge.cfg.output_logits_soft_cap
        if cap is not None and cap > 0:
            logits = cap * (logits / cap).atanh()
        return logits[node.position, node.index] - logits[node.position].mean()

    def _frozen(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda _: self.values[name].clone()

    def _mlp(self, layer: int, ablated: Node | None) -> Callable[[Tensor], Tensor]:
        def output(_: Tensor) -> Tensor:
            frozen = self.values[self.model.hook_name(layer, "hook_mlp_out")].clone()
            if self.raw.W_skip is not None:
                frozen[0, 1:] += (self.inputs[layer][1:] - self.before[1:, layer]) @ self.raw.W_skip[layer].T
            if ablated is not None and 0 <= layer - ablated.layer < self.raw.config.reach_of(ablated.layer):
                written = self.raw.W_dec[ablated.layer][ablated.index, layer - ablated.layer]
                frozen[0, ablated.position] -= ablated.value * written
            return frozen

        return output

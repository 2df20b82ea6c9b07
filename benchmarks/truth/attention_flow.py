"""Flow: the part of an answer that each attention head carries from each position to each other position.

The answer is a difference of two logits at the last position. Its gradient in the frozen, linear model counts all
paths: a head's output reaches the answer directly and through features, whose activations follow their pre-activations.
The product of the gradient with what a head takes from one position is the part that the head carries from there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.attribution.adjoint import feature_seeds
from open_clt.attribution.attribute import attribute
from open_clt.attribution.sources import Sources, attributable, find_sources
from open_clt.attribution.targets import target_seeds
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import LogitDifference
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from open_clt.transcoders.transcoder import Transcoder


@torch.no_grad()
def head_flow(
    model: LanguageModel, transcoder: Transcoder, tokens: list[int], target: LogitDifference
) -> Float[Tensor, "layer head query key"]:
    """The part of a difference of logits that each head carries from each key to each query."""
    clt = attributable(transcoder, model)
    path = read_linear_path(model, torch.tensor(tokens), clt.config.input_hook, clt.config.target_hook)
    sources = find_sources(path, clt)
    slopes = _slopes(model, transcoder, tokens, target)
    gradient = torch.zeros_like(path.embedding)
    gradient[-1] = target_seeds(model, sources, target).cotangent[0]
    carried = []
    for level in reversed(range(model.n_layers)):
        _add_features(sources, level, slopes, gradient)
        block, stream = path.blocks[level], _stream(sources, level)
        factors, shape = block.factors, block.W_O.shape[:2]
        wanted = (gradient @ factors.outputs.T).unflatten(-1, shape)
        values = block.values_of(stream).unflatten(-1, shape)
        carried.append(factors.pattern * torch.einsum("qhe,khe->hqk", wanted, values))
        gradient = gradient + block.head_adjoints(gradient).sum(0)
    return torch.stack(carried[::-1])


def _slopes(
    model: LanguageModel, transcoder: Transcoder, tokens: list[int], target: LogitDifference
) -> dict[tuple[int, int, int], float]:
    """The gradient of the target with respect to each active feature's pre-activation, over all paths of the graph."""
    graph = attribute(model, transcoder, tokens, targets=target)
    nodes, edges = graph.nodes, graph.adjacency().double()
    effect, slopes = edges[-1].clone(), dict[tuple[int, int, int], float]()
    for layer in reversed(range(model.n_layers)):
        rows = ((nodes.kind == NodeKind.FEATURE) & (nodes.layer == layer)).nonzero().flatten()
        slope = effect[rows] / nodes.value[rows]
        effect += slope @ edges[rows]
        places = zip(nodes.position[rows].tolist(), nodes.index[rows].tolist(), strict=True)
        slopes |= {(layer, *place): value for place, value in zip(places, slope.tolist(), strict=True)}
    return slopes


def _add_features(
    sources: Sources,
    level: int,
    slopes: dict[tuple[int, int, int], float],
    gradient: Float[Tensor, "position d_model"],
) -> None:
    """Add what the features of one layer read of the stream to the gradient."""
    chosen = (sources.features.layer == level).nonzero().flatten()
    layer, position, index = (
        column[chosen] for column in (sources.features.layer, sources.features.position, sources.features.index)
    )
    slope = [slopes[level, *place] for place in zip(position.tolist(), index.tolist(), strict=True)]
    seeds = feature_seeds(sources, layer, position, index)
    gradient.index_add_(0, position, torch.tensor(slope)[:, None] * seeds.cotangent)


def _stream(sources: Sources, level: int) -> Float[Tensor, "position d_model"]:
    """The residual stream before a block."""
    path = sources.path
    stream = path.embedding if path.positional is None else path.embedding + path.positional
    for block in path.blocks[:level]:
        stream = stream + block.attention(stream) + block.mlp_output
    return stream

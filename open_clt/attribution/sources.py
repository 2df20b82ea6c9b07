"""What the columns of an attribution are: everything that adds to the residual stream of one prompt.

Columns, in the order in which rows are computed:

    features     by (position, layer, feature): what a position's features write to one layer is one slice
    errors       (layer, position)   what the features miss of an MLP output
    embeddings   (position)
    positional   (position)
    biases       (layer, position)   layer ``n_layers`` is the final norm and the unembedding
    mlp_outputs  (layer, position)   positions below ``first``, where features are not used

Weights are in raw units: the transcoder's standardisation is applied to the few rows that are used, so no second copy
of its tables is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import MLP_INPUT_HOOKS, MLP_OUTPUT_HOOK
from open_clt.errors import AttributionError
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.language.linear_path import LinearPath
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

_CACHED_NUMBERS = 2**27
"""Decoder rows kept between batches, in numbers (512 MB in float32); with more, they are gathered again each time."""


class Written(NamedTuple):
    """What active features write to one layer, by (position, layer, feature)."""

    rows: Float[Tensor, "active d_model"]
    spans: list[slice]
    """The columns of each position's rows; rows follow one another position by position."""


@final
@dataclass(frozen=True, eq=False)
class ActiveFeatures:
    """Active features of a prompt, by (position, layer, feature)."""

    position: Int[Tensor, "feature"]
    layer: Int[Tensor, "feature"]
    index: Int[Tensor, "feature"]
    value: Float[Tensor, "feature"]


class Columns(NamedTuple):
    """Where each kind of source stands among the columns: half-open ranges."""

    features: slice
    errors: slice
    embeddings: slice
    positional: slice
    biases: slice
    mlp_outputs: slice


@final
@dataclass(frozen=True, eq=False)
class Sources:
    """The sources of one prompt, as vectors in the residual stream."""

    path: LinearPath
    transcoder: CrossLayerTranscoder
    features: ActiveFeatures
    starts: Int[Tensor, "position layer_plus_1"]
    """Column of the first feature of each position and layer; the last entry of a row is where the position ends."""
    errors: Float[Tensor, "layer position d_model"]
    b_dec: Float[Tensor, "layer d_model"]
    attention_bias: Float[Tensor, "layer position d_model"]
    W_skip: Float[Tensor, "layer d_model d_model"] | None
    _written: dict[int, Written] = field(default_factory=dict[int, Written])

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.path.blocks)

    @property
    def first(self) -> int:
        """First position at which features are used."""
        return self.transcoder.first_position

    @property
    def columns(self) -> Columns:
        """The layout of a row."""
        layers, positions = self.n_layers, self.path.n_positions
        widths = (
            self.features.value.shape[0], layers * positions, positions, positions,
            (layers + 1) * positions, layers * self.first,
        )  # fmt: skip
        ends = torch.tensor(widths).cumsum(0).tolist()
        return Columns(*(slice(end - width, end) for end, width in zip(ends, widths, strict=True)))

    @property
    def n_columns(self) -> int:
        """Length of a row."""
        return int(self.columns.mlp_outputs.stop)

    def nodes(self) -> NodeTable:
        """A node for every column, on the CPU."""
        layers, positions, features = self.n_layers, self.path.n_positions, self.features
        every = torch.arange(positions)
        outside = torch.full_like(every, -1)
        tables = [
            NodeTable.of(
                NodeKind.FEATURE,
                features.layer.cpu(),
                features.position.cpu(),
                index=features.index.cpu(),
                value=features.value.cpu(),
            ),
            NodeTable.of(NodeKind.ERROR, *_cells(layers, positions)),
            NodeTable.of(NodeKind.EMBEDDING, outside, every, index=self.path.tokens.cpu()),
            NodeTable.of(NodeKind.POSITIONAL, outside, every),
            NodeTable.of(NodeKind.BIAS, *_cells(layers + 1, positions)),
            NodeTable.of(NodeKind.MLP_OUTPUT, *_cells(layers, self.first)),
        ]
        return NodeTable.stacked(tables)

    def written(self, target: int) -> Written:
        """What each active feature writes to one layer; only source layers within reach of it have rows."""
        if target not in self._written:
            written = self._gather(target)
            kept = sum(other.rows.numel() for other in self._written.values())
            if kept + written.rows.numel() > _CACHED_NUMBERS:
                return written
            self._written[target] = written
        return self._written[target]

    def _gather(self, target: int) -> Written:
        lowest = max(0, target + 1 - (self.transcoder.config.reach or self.n_layers))
        begin, end = self.starts[:, lowest].tolist(), self.starts[:, target + 1].tolist()
        spans = [slice(b, e) for b, e in zip(begin, end, strict=True)]
        device = self.features.layer.device
        numbers = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        layers, index = self.features.layer[numbers], self.features.index[numbers]
        rows = self.errors.new_empty(numbers.shape[0], self.path.d_model)
        for source in range(lowest, target + 1):
            chosen = (layers == source).nonzero().flatten()
            rows[chosen] = self.transcoder.W_dec[source][:, target - source][index[chosen]].to(rows.dtype)
        scale = self.transcoder.standardisation.target_scale[target]
        return Written(rows.mul_((self.features.value[numbers] * scale)[:, None]), spans)

    def encoder_rows(self, layer: int, index: Int[Tensor, "target"]) -> Float[Tensor, "target d_model"]:
        """Encoder rows of some features of one layer, as they read raw inputs."""
        rows = self.transcoder.W_enc[layer][index] / self.transcoder.standardisation.input_scale[layer]
        return rows.to(self.errors.dtype)


def attributable(transcoder: Transcoder) -> CrossLayerTranscoder:
    """The transcoder, if graphs can be made with it; raises AttributionError if not."""
    config = transcoder.config
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise AttributionError(
            "What a MOLT's transforms write depends on their input, so its features have no linear edges; attribute "
            "with a transcoder that has decoders."
        )
    if config.input_hook not in MLP_INPUT_HOOKS or config.target_hook != MLP_OUTPUT_HOOK:
        raise AttributionError(
            f"The transcoder reads {config.input_hook!r} and writes {config.target_hook!r}; attribution needs one that "
            f"stands for MLPs, from {' or '.join(map(repr, MLP_INPUT_HOOKS))} to {MLP_OUTPUT_HOOK!r}."
        )
    return transcoder


@torch.no_grad()
def find_sources(path: LinearPath, transcoder: CrossLayerTranscoder) -> Sources:
    """Encode the prompt, and take apart what every MLP adds to its residual stream."""
    first = transcoder.first_position
    inputs = path.inputs.transpose(0, 1)[first:].to(transcoder.dtype)
    encoded = transcoder.encode(inputs)
    outputs = torch.stack([block.mlp_output for block in path.blocks])
    errors = torch.zeros_like(outputs)
    errors[:, first:] = outputs[:, first:] - transcoder.decode(encoded, inputs).transpose(0, 1).to(outputs.dtype)
    features = _active(encoded, first)
    nothing = inputs.new_zeros(1, inputs.shape[2])
    stats, layers = transcoder.standardisation, range(len(path.blocks))
    scale = (stats.target_scale / stats.input_scale)[:, None, None]
    return Sources(
        path=path,
        transcoder=transcoder,
        features=features,
        starts=_starts(features, path),
        errors=errors,
        b_dec=torch.cat([transcoder.offset(nothing, layer) for layer in layers]).to(outputs.dtype),
        attention_bias=torch.stack([block.attention_bias() for block in path.blocks]),
        W_skip=None if transcoder.W_skip is None else (transcoder.W_skip * scale).to(outputs.dtype),
    )


def _active(encoded: list[SparseFeatures], first: int) -> ActiveFeatures:
    position = torch.cat([layer.rows for layer in encoded]) + first
    layer = torch.cat([torch.full_like(found.rows, number) for number, found in enumerate(encoded)])
    index = torch.cat([layer.features for layer in encoded])
    value = torch.cat([layer.values for layer in encoded]).float()
    width = encoded[0].n_features
    key = (position * len(encoded) + layer) * width + index
    order = torch.argsort(key)
    order = order[value[order] != 0]
    return ActiveFeatures(position[order], layer[order], index[order], value[order])


def _starts(features: ActiveFeatures, path: LinearPath) -> Int[Tensor, "position layer_plus_1"]:
    layers, positions = len(path.blocks), path.n_positions
    cell = features.position * layers + features.layer
    counts = torch.bincount(cell, minlength=positions * layers)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    numbers = torch.arange(positions)[:, None] * layers + torch.arange(layers + 1)
    return starts[numbers.to(starts.device)].cpu()


def _cells(layers: int, positions: int) -> tuple[Int[Tensor, "node"], Int[Tensor, "node"]]:
    """Layer and position of every cell of a grid, layer by layer."""
    return torch.arange(layers).repeat_interleave(positions), torch.arange(positions).repeat(layers)

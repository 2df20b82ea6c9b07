"""Sources: the columns of an attribution, which are the vectors that are added to the residual stream of one prompt.

The columns come in this order:

    features     (position, layer, feature)   the columns of one position's features form one slice
    errors       (layer, position)            the part of an MLP output that the features do not reconstruct, which is
                                              the whole output at layers where the transcoder has no features
    embeddings   (position)
    positional   (position)
    biases       (layer, position)            layer ``n_layers`` holds the final norm and the unembedding
    mlp_outputs  (layer, position)            only positions below ``first``, where features are not used

Numbers of layers are those of the language model. Weights are in raw units. The transcoder's standardisation is applied
to the few rows that are used, so its weights are not copied as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config import MLP_OUTPUT_HOOK
from open_clt.errors import AttributionError
from open_clt.finite import check_finite
from open_clt.graphs.nodes import NodeKind, NodeTable
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import LinearPath
from open_clt.language.loading import TOLERANCE
from open_clt.language.transcoders.named import transcoder_of
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.sparse.codes import SparseFeatures
from open_clt.transcoders.transcoder import Transcoder

Attributable: TypeAlias = CrossLayerTranscoder | NeuronTranscoder
"""The transcoders whose features are linear once the prompt is frozen."""
_TARGETS = (MLP_OUTPUT_HOOK, "mlp.hook_out")
"""Hooks that carry the output of an MLP; ``mlp.hook_out`` is refused later if a norm follows it."""
_CACHED_NUMBERS = 2**27
CACHED_BYTES = 4 * _CACHED_NUMBERS
"""Largest number of bytes of the decoder rows that are cached between batches, in float32.

Rows beyond this limit are gathered again for every batch."""


class Written(NamedTuple):
    """The vectors that active features write to one layer, sorted by position, layer and feature."""

    rows: Float[Tensor, "active d_model"]
    """Vector that each feature writes."""
    spans: list[slice]
    """Slice of feature columns that each position's rows belong to."""

    __repr__ = short_repr


@final
@dataclass(frozen=True, eq=False)
class ActiveFeatures:
    """The active features of a prompt, sorted by position, layer and index."""

    position: Int[Tensor, "feature"]
    """Position of each active feature."""
    layer: Int[Tensor, "feature"]
    """Layer of each active feature."""
    index: Int[Tensor, "feature"]
    """Index of each active feature in its layer."""
    value: Float[Tensor, "feature"]
    """Activation of each active feature."""

    __repr__ = short_repr


class Columns(NamedTuple):
    """The slice of columns that each kind of source takes."""

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
    """The model, frozen on the prompt."""
    transcoder: Attributable
    """The transcoder whose features are the sources."""
    features: ActiveFeatures
    """The active features of the prompt."""
    starts: Int[Tensor, "position layer_plus_1"]
    """Column of the first feature of each position and layer; the last entry of a row is the end of the position."""
    errors: Float[Tensor, "layer position d_model"]
    """Difference between each MLP output and its reconstruction, which is zero where there are no features."""
    constants: Float[Tensor, "layer position d_model"]
    """Constant part of each layer's reconstruction, in raw units: the decoder bias, and what a skip path adds to it."""
    attention_bias: Float[Tensor, "layer position d_model"]
    """Vector that the biases of each attention layer add."""
    W_skip: dict[int, Float[Tensor, "d_model d_model"]]
    """Skip weights of each layer that has a skip path, in raw units."""
    _written: dict[int, Written] = field(default_factory=dict[int, Written])

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.path.blocks)

    @property
    def first(self) -> int:
        """The first position at which features are used."""
        return self.transcoder.first_position

    @cached_property
    def columns(self) -> Columns:
        """The columns of each kind."""
        layers, positions = self.n_layers, self.path.n_positions
        widths = (
            self.features.value.shape[0], layers * positions, positions, positions,
            (layers + 1) * positions, layers * self.first,
        )  # fmt: skip
        ends = torch.tensor(widths).cumsum(0).tolist()
        return Columns(*(slice(end - width, end) for end, width in zip(ends, widths, strict=True)))

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return int(self.columns.mlp_outputs.stop)

    def nodes(self) -> NodeTable:
        """One node for each column, on the CPU."""
        layers, positions, features = self.n_layers, self.path.n_positions, self.features
        every_position = torch.arange(positions)
        below_first_layer = torch.full_like(every_position, -1)
        tables = [
            NodeTable.of(
                NodeKind.FEATURE,
                features.layer.cpu(),
                features.position.cpu(),
                index=features.index.cpu(),
                value=features.value.cpu(),
            ),
            NodeTable.of(NodeKind.ERROR, *_cells(layers, positions)),
            NodeTable.of(NodeKind.EMBEDDING, below_first_layer, every_position, index=self.path.tokens.cpu()),
            NodeTable.of(NodeKind.POSITIONAL, below_first_layer, every_position),
            NodeTable.of(NodeKind.BIAS, *_cells(layers + 1, positions)),
            NodeTable.of(NodeKind.MLP_OUTPUT, *_cells(layers, self.first)),
        ]
        return NodeTable.stacked(tables)

    def written(self, target: int) -> Written:
        """The vectors that active features write to layer ``target``; only layers that reach it have rows."""
        if target not in self._written:
            written = self._gather(target)
            cached = sum(layer.rows.numel() for layer in self._written.values())
            if cached + written.rows.numel() > _CACHED_NUMBERS:
                return written
            self._written[target] = written
        return self._written[target]

    def _gather(self, target: int) -> Written:
        """Gather the decoder rows of the active features that write to one layer."""
        config = self.transcoder.config
        places = range(0)  # the layers whose features write to the target, as places of the transcoder
        if target in config.model_layers:
            place = config.place_of(target)
            places = range(max(0, place + 1 - (config.reach or config.n_layers)), place + 1)
        lowest = config.model_layers[places[0]] if places else target + 1
        begin, end = self.starts[:, lowest].tolist(), self.starts[:, target + 1].tolist()
        spans = [slice(*bounds) for bounds in zip(begin, end, strict=True)]
        device = self.features.layer.device
        columns = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(device)
        layers, index = self.features.layer[columns], self.features.index[columns]
        rows = self.errors.new_empty(columns.shape[0], self.path.d_model)
        for source in places:
            chosen = (layers == config.model_layers[source]).nonzero().flatten()
            where = {"features": index[chosen], "positions": self.features.position[columns][chosen]}
            vectors = self.transcoder.vectors(self._inputs(config.model_layers[source]), source, places[-1], **where)
            rows[chosen] = vectors.to(rows.dtype)
        return Written(rows.mul_(self.features.value[columns][:, None]), spans)

    def target_rows(
        self, layer: int, index: Int[Tensor, "target"], position: Int[Tensor, "target"]
    ) -> Float[Tensor, "target d_model"]:
        """Some features of one layer as linear functions of the raw input at their positions."""
        place = self.transcoder.config.place_of(layer)
        return self.transcoder.target_rows(self._inputs(layer)[position], place, index).to(self.errors.dtype)

    def _inputs(self, layer: int) -> Float[Tensor, "position d_model"]:
        return self.path.inputs[layer].to(self.transcoder.dtype)

    __repr__ = short_repr


def attributable(transcoder: Transcoder | str | Path, model: LanguageModel) -> Attributable:
    """Return a transcoder, or the one that a source means for a model (``transcoder_of``), if attribution can use it.

    Raises AttributionError if it cannot.
    """
    if not isinstance(transcoder, Transcoder):
        transcoder = transcoder_of(model, transcoder)
    if not isinstance(transcoder, Attributable):
        raise AttributionError(
            f"The transcoder is a {type(transcoder).__name__}, whose features have no linear edges; give a "
            f"{CrossLayerTranscoder.__name__}, or 'neurons'."
        )
    if transcoder.config.target_hook not in _TARGETS:
        raise AttributionError(
            f"The transcoder writes {transcoder.config.target_hook!r}; give a transcoder that writes "
            f"{' or '.join(map(repr, _TARGETS))}."
        )
    return transcoder


@torch.no_grad()
def find_sources(path: LinearPath, transcoder: Attributable) -> Sources:
    """Encode the prompt, and split each MLP output into features, biases and an error.

    Raises NotFiniteError if the model, or the transcoder, does not compute finite numbers for the prompt.
    """
    first, layers = transcoder.first_position, list(transcoder.config.model_layers)
    inputs = path.inputs[layers].transpose(0, 1)[first:].to(transcoder.dtype)
    encoded = transcoder.encode(inputs)
    outputs = torch.stack([block.mlp_output for block in path.blocks])
    errors = torch.zeros_like(outputs)
    errors[:, first:] = outputs[:, first:]
    errors[layers, first:] -= transcoder.decode(encoded, inputs).transpose(0, 1).to(outputs.dtype)
    if isinstance(transcoder, NeuronTranscoder):
        errors = _without_rounding(errors, outputs, TOLERANCE.get(transcoder.dtype, 1e-3))
    check_finite(errors, "The difference between an MLP output and its reconstruction", axes=("layer", "position"))
    features = _active(encoded, first, layers)
    stats, skip = transcoder.standardisation, transcoder.W_skip
    scale = (stats.target_scale / stats.input_scale)[:, None, None]
    return Sources(
        path=path,
        transcoder=transcoder,
        features=features,
        starts=_starts(features, path),
        errors=errors,
        constants=_constants(path, transcoder),
        attention_bias=torch.stack([block.attention_bias() for block in path.blocks]),
        W_skip={} if skip is None else dict(zip(layers, (skip * scale).to(outputs.dtype).unbind(), strict=True)),
    )


def _without_rounding(
    errors: Float[Tensor, "layer position d_model"], outputs: Float[Tensor, "layer position d_model"], tolerance: float
) -> Float[Tensor, "layer position d_model"]:
    """Errors of zero for neurons, which reconstruct the outputs of their MLPs; raises AttributionError if they do not.

    What is left is the rounding of another order of the same sums, which would otherwise give edges to error nodes.
    """
    deviation = float((errors.flatten(1).norm(dim=1) / outputs.flatten(1).norm(dim=1).clamp(min=1e-30)).max())
    if not deviation <= tolerance:
        raise AttributionError(
            f"The neurons deviate from the outputs of their MLPs by {deviation:.1e} on this prompt; load the language"
            " model in float32, or use another transcoder."
        )
    return torch.zeros_like(errors)


def _constants(path: LinearPath, transcoder: Attributable) -> Float[Tensor, "layer position d_model"]:
    """The constant part of each reconstruction: the decoder bias, and the skip path of the bias of a norm."""
    constants = path.embedding.new_zeros(path.inputs.shape)
    for place, layer in enumerate(transcoder.config.model_layers):
        inputs = path.inputs[layer]
        if transcoder.W_skip is not None:  # without a skip path, the offset is constant, or frozen at the inputs
            bias = path.readers[layer].bias
            inputs = torch.zeros_like(inputs) if bias is None else bias.expand_as(inputs)
        constants[layer] = transcoder.offset(inputs.to(transcoder.dtype), place).to(constants.dtype)
    return constants


def _active(encoded: list[SparseFeatures], first: int, layers: list[int]) -> ActiveFeatures:
    """The active features of some layers, sorted by position, layer and index."""
    position = torch.cat([codes.rows for codes in encoded]) + first
    layer = torch.cat([torch.full_like(codes.rows, layer) for layer, codes in zip(layers, encoded, strict=True)])
    index = torch.cat([codes.features for codes in encoded])
    value = torch.cat([codes.values for codes in encoded]).float()
    width = encoded[0].n_features
    key = (position * (layers[-1] + 1) + layer) * width + index
    order = torch.argsort(key)
    order = order[value[order] != 0]
    return ActiveFeatures(position[order], layer[order], index[order], value[order])


def _starts(features: ActiveFeatures, path: LinearPath) -> Int[Tensor, "position layer_plus_1"]:
    """The column of the first feature of each position and layer, and the end of each position."""
    layers, positions = len(path.blocks), path.n_positions
    cell = features.position * layers + features.layer
    counts = torch.bincount(cell, minlength=positions * layers)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    cells = torch.arange(positions)[:, None] * layers + torch.arange(layers + 1)
    return starts[cells.to(starts.device)].cpu()


def _cells(layers: int, positions: int) -> tuple[Int[Tensor, "node"], Int[Tensor, "node"]]:
    """The layer and the position of every cell of a grid, layer by layer."""
    return torch.arange(layers).repeat_interleave(positions), torch.arange(positions).repeat(layers)

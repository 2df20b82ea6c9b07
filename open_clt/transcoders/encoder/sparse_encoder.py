"""The sparse encoder: the strongest features of hidden states, computed with the encoders of a transcoder alone.

Hidden states are those that the transcoder reads (its ``input_hook``), from any language model. They are encoded some
positions at a time, so the memory beyond inputs and results depends on ``chunk_size`` and the width of the transcoder,
and not on the number of positions. Decoders are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.config.arguments import Count, checked_arguments
from open_clt.device import check_device
from open_clt.errors import ConfigError
from open_clt.finite import check_finite
from open_clt.memory import available_on, memory_errors
from open_clt.short_repr import short_repr
from open_clt.transcoders.encoder.layers import LayerEncoder, Strongest, layer_encoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.checks import check_dtype
from open_clt.transcoders.formats.load import open_transcoder
from open_clt.transcoders.formats.stored import StoredTranscoder
from open_clt.transcoders.formats.weight_files import OpenedFiles
from open_clt.transcoders.transcoder import Transcoder

_SHARE_OF_MEMORY = 0.5
"""Share of the available memory that encoders may take; larger ones are read from their files block by block."""

Source: TypeAlias = str | Path | Transcoder | Mapping[int, LayerEncoder]
"""What an encoder is made of: anything that ``load_transcoder`` reads, a transcoder, or the encoders of some layers."""


class EncodedLayer(NamedTuple):
    """The strongest features of one layer at each position."""

    layer: int
    activations: Float[Tensor, "batch position top_k"]
    """Activations, largest size first; 0 where fewer than ``top_k`` features are active."""
    indices: Int[Tensor, "batch position top_k"]
    """Feature of each activation; without meaning where the activation is 0."""
    sparsity: Float[Tensor, "batch position"]
    """Share of the layer's features that are active, including those beyond the ``top_k`` strongest."""

    __repr__ = short_repr


class StrongFeature(NamedTuple):
    """A feature that is active at a position, among the strongest of a text."""

    feature: Feature
    position: int
    activation: float
    share: float
    """Share of this feature and all stronger ones in the sum of the sizes of all encoded activations."""


@final
class SparseEncoder:
    """Encodes hidden states into the strongest features of each layer, without decoders."""

    @checked_arguments
    def __init__(
        self,
        source: Source,
        *,
        top_k: Count = 20,
        activation_threshold: float = 0.0,
        chunk_size: Count | None = 512,
        normalize: Literal["layernorm"] | None = None,
        use_compile: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Open the encoders of ``source``; those of a directory, file or name on the hub are read when they are used.

        The features are those of the transcoder's own nonlinearity whose activations are of size
        ``activation_threshold`` or larger; the ``top_k`` largest of each position are kept. ``chunk_size`` is the
        number of positions that are encoded at once, and None stands for all of them. With ``normalize="layernorm"``,
        hidden states are centred and divided by their standard deviation first, for transcoders that read such states,
        as hooks of the name ``ln2.hook_normalized`` give them. ``use_compile`` compiles the computation with
        ``torch.compile``. A transcoder in memory keeps its device and type.

        Raises ConfigError if an argument is illegal or if features of all layers compete (TopK across layers), and
        CheckpointError if the source cannot be read.
        """
        if activation_threshold < 0:
            raise ConfigError(f"activation_threshold is {activation_threshold}; it must be at least 0.")
        check_dtype(dtype)
        self.top_k, self.activation_threshold = top_k, activation_threshold
        self.chunk_size, self.normalize = chunk_size, normalize
        self._encoders: dict[int, LayerEncoder] = {}
        self._transcoder, self._in_memory = None, True
        if isinstance(source, Mapping):
            self._encoders = dict(source)
            if not self._encoders:
                raise ConfigError("The mapping of encoders is empty; give the encoder of at least one layer.")
        elif isinstance(source, Transcoder):
            self._transcoder = source
        else:
            self._transcoder, self._in_memory = _open(source, check_device(device), dtype)
        if self._transcoder is not None:
            self._encoder(self.layers[0])  # so that a nonlinearity that is not supported is refused now
        strongest: Callable[..., Strongest] = _strongest
        self._strongest = torch.compile(strongest) if use_compile else strongest

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that can be encoded."""
        if self._transcoder is None:
            return tuple(sorted(self._encoders))
        return self._transcoder.config.model_layers

    @property
    def encoders(self) -> dict[int, LayerEncoder]:
        """The encoders of all layers, by layer; those that were not used before are opened now."""
        return {layer: self._encoder(layer) for layer in self.layers}

    @checked_arguments
    def encode_layer(self, layer: int, hidden: Float[Tensor, "batch position d_model"]) -> EncodedLayer:
        """Encode the hidden states of one layer, ``chunk_size`` positions at a time.

        Raises ConfigError if the layer is unknown or if the states have another shape, and NotFiniteError if a state
        is not finite.
        """
        return self.encode_chunked(layer, hidden, chunk_size=self.chunk_size)

    @checked_arguments
    @torch.no_grad()
    def encode_chunked(
        self, layer: int, hidden: Float[Tensor, "batch position d_model"], chunk_size: Count | None = None
    ) -> EncodedLayer:
        """Encode the hidden states of one layer, ``chunk_size`` positions at a time, or all at once if it is None."""
        encoder = self._encoder(layer)
        if hidden.ndim != 3 or hidden.shape[2] != encoder.d_model:
            raise ConfigError(
                f"The hidden states of layer {layer} have the shape {tuple(hidden.shape)}; it must be (batch, "
                f"position, {encoder.d_model})."
            )
        check_finite(hidden, f"The hidden states of layer {layer}", axes=("batch", "position"))
        tokens = hidden.flatten(0, 1)
        top_k, device = min(self.top_k, encoder.n_features), encoder.bias.device
        with memory_errors("The encoding of the hidden states", "use a smaller top_k or chunk_size"):
            activations = torch.zeros(len(tokens), self.top_k, device=device, dtype=encoder.bias.dtype)
            indices = torch.zeros(len(tokens), self.top_k, device=device, dtype=torch.long)
            n_active = torch.zeros(len(tokens), device=device, dtype=torch.long)
            for start in range(0, len(tokens), step := chunk_size or max(1, len(tokens))):
                chunk = slice(start, start + step)
                states = tokens[chunk].to(device)
                if self.normalize is not None:
                    states = functional.layer_norm(states.float(), states.shape[1:])
                found = self._strongest(encoder, states, top_k, self.activation_threshold, layer)
                activations[chunk, :top_k], indices[chunk, :top_k] = found.activations, found.indices
                n_active[chunk] = found.n_active
        check_finite(activations, f"The activations of layer {layer}", axes=("token",))
        shape = hidden.shape[:2]
        return EncodedLayer(
            layer,
            activations.unflatten(0, shape),
            indices.unflatten(0, shape),
            (n_active / encoder.n_features).view(shape),
        )

    @checked_arguments
    def encode_all_layers(
        self, hidden: Mapping[int, Float[Tensor, "batch position d_model"]]
    ) -> dict[int, EncodedLayer]:
        """Encode the hidden states of several layers, given by layer."""
        return {layer: self.encode_layer(layer, states) for layer, states in hidden.items()}

    @checked_arguments
    def extract_attribution_features(
        self, hidden_states: Mapping[int, Float[Tensor, "batch position d_model"]], top_k_global: Count = 100
    ) -> list[StrongFeature]:
        """The ``top_k_global`` strongest features of a text over all given layers and positions, strongest first.

        They are chosen by the sizes of their activations; what they do to the output is not considered, which needs
        decoders (``attribute``). Raises ConfigError for a batch of several texts.
        """
        for layer, states in hidden_states.items():
            if states.ndim == 3 and states.shape[0] != 1:
                raise ConfigError(
                    f"The hidden states of layer {layer} are those of {states.shape[0]} texts; give one text."
                )
        encoded = self.encode_all_layers(hidden_states)
        return _strongest_of([encoded[layer] for layer in sorted(encoded)], top_k_global)

    def _encoder(self, layer: int) -> LayerEncoder:
        if layer not in self._encoders:
            if self._transcoder is None or layer not in self.layers:
                raise ConfigError(f"The encoder does not have layer {layer}; it has {_listed(self.layers)}.")
            self._encoders[layer] = layer_encoder(self._transcoder, layer, in_memory=self._in_memory)
        return self._encoders[layer]

    @classmethod
    @checked_arguments
    def load_transcoders(
        cls,
        source: str | Path,
        layers: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> SparseEncoder:
        """Read the encoders of some layers of a stored transcoder, by default of all, into memory if they fit.

        ``settings`` are other arguments of ``SparseEncoder``.
        """
        encoder = cls(source, device=device, **settings)
        wanted = encoder.layers if layers is None else layers
        encoders = {layer: encoder._encoder(layer) for layer in wanted}
        return cls(encoders, **settings)

    __repr__ = short_repr


def _open(source: str | Path, device: torch.device, dtype: torch.dtype) -> tuple[Transcoder, bool]:
    """The transcoder of a source, of which nothing large is read yet, and whether encoders are read into memory."""
    content = open_transcoder(source).content
    if not isinstance(content, StoredTranscoder):
        return content.to(device=device, dtype=dtype).eval(), True
    available = available_on(device)
    needed = sum(encoder.shape.numel() for encoder in content.weights.encoders) * dtype.itemsize
    in_memory = available is None or needed <= available * _SHARE_OF_MEMORY
    content = content.of_files(OpenedFiles())  # so that no decoder is searched for numbers that are not finite
    return content.load(device=device, dtype=dtype, memory_limit=0), in_memory


def _strongest(
    encoder: LayerEncoder, states: Float[Tensor, "token d_model"], top_k: int, least: float, layer: int
) -> Strongest:
    return encoder.strongest(states, top_k, least, layer)


def _strongest_of(encoded: Sequence[EncodedLayer], count: int) -> list[StrongFeature]:
    """The strongest entries of all layers; equal ones are in the order of layers and positions."""
    if not encoded:
        return []
    sizes = torch.cat([layer.activations.float().abs().flatten().cpu() for layer in encoded])
    total = float(sizes.double().sum()) or 1.0
    order = sizes.argsort(descending=True, stable=True)[:count]
    order = order[sizes[order] > 0]
    values = torch.cat([layer.activations.float().flatten().cpu() for layer in encoded])[order].tolist()
    shares = (sizes[order].double().cumsum(0) / total).tolist()
    features: list[StrongFeature] = []
    widths = [layer.activations.numel() for layer in encoded]
    ends = torch.tensor(widths).cumsum(0)
    for entry, value, share in zip(order.tolist(), values, shares, strict=True):
        which = int(torch.searchsorted(ends, entry, right=True))
        of_layer = encoded[which]
        place = entry - (int(ends[which]) - widths[which])
        position, column = divmod(place, of_layer.activations.shape[2])
        index = int(of_layer.indices[0, position, column])
        features.append(StrongFeature(Feature(of_layer.layer, index), position, value, share))
    return features


def _listed(layers: Sequence[int]) -> str:
    if list(layers) == list(range(len(layers))):
        return f"layers 0 to {len(layers) - 1}"
    return "the layers " + ", ".join(map(str, layers[:20]))

"""Decoder directions: the vectors that features write into the residual stream per unit of activation; their norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config.arguments import checked_arguments
from open_clt.errors import ConfigError
from open_clt.progress import report_progress
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_AT_ONCE = 4096
"""Number of features whose decoders are in memory at once."""


@torch.no_grad()
def decoder_directions(transcoder: Transcoder, chosen: Sequence[Feature]) -> Float[Tensor, "chosen d_model"]:
    """What each chosen feature writes per unit of activation, in raw units, summed over the layers it writes to.

    Raises ConfigError for a mixture of linear transforms, whose features write what depends on the input.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise ConfigError("A feature of a MOLT has no fixed decoder direction; use a transcoder with decoders.")
    directions = torch.zeros(len(chosen), transcoder.config.d_model)
    for layer in {feature.layer for feature in chosen}:
        rows = [row for row, feature in enumerate(chosen) if feature.layer == layer]
        indices = torch.tensor([chosen[row].index for row in rows], device=transcoder.device)
        place = transcoder.config.place_of(layer)
        directions[rows] = transcoder.decoders(place, indices).sum(1).float().cpu()
    return directions


@torch.no_grad()
def decoder_norms_between_layers(transcoder: Transcoder) -> Float[Tensor, "source target"]:
    """Mean norm of the decoders of each source layer to each target layer, in raw units; 0 where it has none.

    Raises ConfigError for a mixture of linear transforms, whose features write what depends on the input.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise ConfigError("A feature of a MOLT has no decoders; use a transcoder with decoders.")
    config = transcoder.config
    norms = torch.zeros(config.n_layers, config.n_layers)
    for source in range(config.n_layers):
        sums = torch.zeros(0, dtype=torch.double)
        for features in torch.arange(config.n_features, device=transcoder.device).split(_AT_ONCE):
            report_progress("measuring decoders", source, config.n_layers)
            part = transcoder.decoders(source, features).double().norm(dim=-1).sum(0).cpu()
            sums = part if not len(sums) else sums + part
        norms[source, source : source + len(sums)] = (sums / config.n_features).float()
    return norms


@checked_arguments
@torch.no_grad()
def match_features(first: Transcoder, second: Transcoder, *, min_cosine: float = 0.7) -> dict[Feature, Feature]:
    """Find, for features of ``second``, the features of ``first`` that write the same.

    Two features of the same layer match if each has the other's nearest decoder, by the cosine of everything that they
    write to all layers, and this cosine is at least ``min_cosine``. Raises ConfigError if the transcoders have
    different shapes or no decoders, or if ``min_cosine`` is not above 0 and at most 1.
    """
    if not (isinstance(first, CrossLayerTranscoder) and isinstance(second, CrossLayerTranscoder)):
        raise ConfigError("A feature of a MOLT has no fixed decoder direction; use a transcoder with decoders.")
    if not 0 < min_cosine <= 1:
        raise ConfigError(f"min_cosine is {min_cosine}; it must be above 0 and at most 1.")
    shapes = [
        {"n_layers": config.n_layers, "d_model": config.d_model, "reach": config.reach or config.n_layers}
        for config in (first.config, second.config)
    ]
    for name, ours in shapes[0].items():
        if ours != (theirs := shapes[1][name]):
            raise ConfigError(f"Transcoders with {name} {ours} and {theirs} cannot be matched; they must be equal.")
    matches: dict[Feature, Feature] = {}
    for layer in range(first.config.n_layers):
        ours, theirs = (_unit_decoders(transcoder, layer) for transcoder in (first, second))
        best, nearest = _nearest(theirs, ours)
        _, back = _nearest(ours, theirs)
        mutual = (back[nearest] == torch.arange(len(theirs))) & (best >= min_cosine)
        for index in mutual.nonzero().flatten().tolist():
            matches[Feature(layer, index)] = Feature(layer, int(nearest[index]))
    return matches


def _unit_decoders(transcoder: CrossLayerTranscoder, layer: int) -> Float[Tensor, "feature target_d_model"]:
    """The decoders of a layer's features to all layers, side by side, with norm 1; 0 where a feature writes nothing."""
    features = torch.arange(transcoder.config.n_features, device=transcoder.device)
    return torch.nn.functional.normalize(transcoder.decoders(layer, features).flatten(1).float().cpu(), dim=1)


def _nearest(
    rows: Float[Tensor, "row width"], others: Float[Tensor, "other width"]
) -> tuple[Float[Tensor, "row"], Int[Tensor, "row"]]:
    """The largest cosine of each row with one of the others, and which one it is."""
    found = [(part @ others.T).max(dim=1) for part in rows.split(_AT_ONCE)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])

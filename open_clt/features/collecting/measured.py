"""Records of features, made of what a collection holds about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.config.arguments import Count, checked_arguments
from open_clt.config.transcoder import words_of_layers
from open_clt.errors import ConfigError
from open_clt.features.collecting.collect import N_GROUPS, FeatureCollection
from open_clt.features.collecting.examples import Windows
from open_clt.features.collecting.outputs import Directions, Outputs, TokenNames, outputs_of, rounded
from open_clt.features.records import ExampleGroup, FeatureExample, FeatureRecord, RelatedFeature, TokenShare
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_BLOCK = 128
_BINS = 40
_SHARES = torch.arange(1, 101) / 100


class _ListLengths(NamedTuple):
    """How many tokens and related features each list of a record has."""

    tokens: int
    related: int


@checked_arguments
def feature_records(
    model: LanguageModel,
    transcoder: Transcoder,
    collection: FeatureCollection,
    chosen: Iterable[Feature] | None = None,
    *,
    n_tokens: Count = 10,
    n_related: Count = 10,
) -> Iterator[FeatureRecord]:
    """Yield the records of the chosen features, by default of all, by layer and by index.

    ``n_tokens`` is the number of tokens in each list of outputs, and ``n_related`` the number of related features in
    each list. Raises ConfigError for a feature that the transcoder does not have.
    """
    check_fits(transcoder, model)
    layers, width = collection.model_layers, collection.n_features
    features = _all(layers, width) if chosen is None else sorted(set(chosen))
    for feature in features if chosen is not None else ():
        if feature.layer not in layers or not 0 <= feature.index < width:
            raise ConfigError(
                f"The transcoder has no feature {feature}; it has {width} features at each of the layers "
                f"{words_of_layers(layers)}."
            )
    return _records(model, transcoder, collection, features, _ListLengths(n_tokens, n_related))


def _all(layers: Sequence[int], n_features: int) -> Iterator[Feature]:
    return (Feature(layer, index) for layer in layers for index in range(n_features))


@torch.no_grad()
def _records(
    model: LanguageModel,
    transcoder: Transcoder,
    collection: FeatureCollection,
    features: Iterable[Feature],
    counts: _ListLengths,
) -> Iterator[FeatureRecord]:
    names, directions = TokenNames(model), Directions(transcoder)
    for block in _blocks(features):
        rows = torch.tensor([collection.row(feature) for feature in block])
        nearest = _related(collection, rows, directions.cosines(rows), counts.related)
        coactive = _related(collection, rows, collection.activity.cosines(rows, collection.counts), counts.related)
        outputs = outputs_of(model, transcoder, names, block, counts.tokens)
        for feature, written, near, together in zip(block, outputs, nearest, coactive, strict=True):
            record = _record(collection, names, feature, written)
            yield replace(record, nearest=near, coactive=together)


def _blocks(features: Iterable[Feature]) -> Iterator[list[Feature]]:
    """Yield features of one layer, some at a time."""
    for _, layer in groupby(features, key=lambda feature: feature.layer):
        block: list[Feature] = []
        for feature in layer:
            block.append(feature)
            if len(block) == _BLOCK:
                yield block
                block = []
        if block:
            yield block


def _record(collection: FeatureCollection, names: TokenNames, feature: Feature, outputs: Outputs) -> FeatureRecord:
    """The record of a feature, without related features."""
    row = collection.row(feature)
    top, sample = collection.top.of(row), collection.sample.of(row)
    lowest, highest = (float(value) for value in collection.extremes[:, row])
    active = int(collection.counts[row])
    return FeatureRecord(
        feature=feature,
        density=active / max(1, collection.n_tokens),
        max_activation=highest,
        examples=_examples(top, names),
        top_tokens=outputs.top_tokens,
        bottom_tokens=outputs.bottom_tokens,
        min_activation=lowest,
        histogram=_histogram(collection, row, lowest, highest) if active else (),
        quantile_values=_quantiles(collection, row, lowest, highest) if active else (),
        groups=_groups(sample, names),
        outputs=outputs.by_layer,
        fires_on=_fires_on(collection, row, (top, sample), names),
    )


def _examples(windows: Windows, names: TokenNames) -> tuple[FeatureExample, ...]:
    """Examples of the windows; activations have four digits, which are enough to see them."""
    activations = windows.shares.float() * windows.values[:, None]
    width = windows.tokens.shape[1]
    tokens = names.of(windows.tokens.flatten().tolist())
    return tuple(
        FeatureExample(tuple(tokens[start : start + width]), _rounded(values), peak)
        for start, values, peak in zip(range(0, len(tokens), width), activations, windows.peaks.tolist(), strict=True)
    )


def _rounded(values: Float[Tensor, "position"]) -> Float[Tensor, "position"]:
    """Values with four significant digits."""
    return torch.tensor([rounded(value) for value in values.tolist()])


def _groups(sample: Windows, names: TokenNames) -> tuple[ExampleGroup, ...]:
    """The sample in ranges of quantiles, highest first; empty if it has fewer contexts than there are ranges."""
    order = sample.values.abs().argsort(descending=True, stable=True)
    if len(order) < N_GROUPS:
        return ()
    groups: list[ExampleGroup] = []
    for group, part in enumerate(order.tensor_split(N_GROUPS)):
        high = 100 - group * 100 // N_GROUPS
        name = f"peaks {high - 100 // N_GROUPS}–{high} %"
        groups.append(ExampleGroup(name, _examples(Windows(*(column[part] for column in sample)), names)))
    return tuple(groups)


def _histogram(collection: FeatureCollection, row: int, lowest: float, highest: float) -> tuple[float, ...]:
    """Counts in equal bins from the lowest to the highest activation."""
    limits = torch.linspace(lowest, highest, _BINS + 1, dtype=torch.double)
    negative, positive = collection.negative, collection.positive
    below = torch.zeros(_BINS + 1, dtype=torch.double)
    if lowest < 0:
        below += negative.total(row) - negative.cumulative(row, (-limits).clamp(min=0))
    if highest > 0:
        below += positive.cumulative(row, limits.clamp(min=0))
    below[0], below[-1] = 0, int(collection.counts[row])
    return tuple(below.round().diff().tolist())


def _quantiles(collection: FeatureCollection, row: int, lowest: float, highest: float) -> tuple[float, ...]:
    """Quantiles 1 %, ..., 100 % of the activations."""
    negative, positive = collection.negative.total(row), collection.positive.total(row)
    wanted = _SHARES.double() * (negative + positive)
    values = torch.zeros(len(wanted), dtype=torch.double)
    below = wanted <= negative
    if negative:
        values[below] = -collection.negative.quantiles(row, 1 - wanted[below] / negative)
    if positive:
        values[~below] = collection.positive.quantiles(row, (wanted[~below] - negative) / positive)
    quantiles = [min(max(rounded(value), lowest), highest) for value in values.cummax(0).values.tolist()]
    return (*quantiles[:-1], highest if positive else quantiles[-1])


def _fires_on(
    collection: FeatureCollection, row: int, windows: Sequence[Windows], names: TokenNames
) -> tuple[TokenShare, ...]:
    """The tokens in the examples on which the feature is active most often, in the whole text."""
    seen: Counter[int] = Counter()
    for part in windows:
        seen.update(part.tokens[part.shares != 0].tolist())
    tokens = torch.tensor([token for token, _ in seen.most_common(50)], dtype=torch.long)
    shares = collection.tokens.shares(row, tokens)
    order = shares.argsort(descending=True, stable=True)[:10]
    chosen = zip(names.of(tokens[order].tolist()), shares[order].tolist(), strict=True)
    return tuple(TokenShare(name, rounded(share)) for name, share in chosen if share > 0)


def _related(
    collection: FeatureCollection,
    rows: Int[Tensor, "chosen"],
    cosines: Float[Tensor, "chosen row"] | None,
    count: int,
) -> list[tuple[RelatedFeature, ...]]:
    """For each of some features, the others with the largest positive cosines."""
    if cosines is None:
        return [() for _ in rows]
    cosines = cosines.scatter(1, rows[:, None], 0)
    values, others = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return [
        tuple(
            RelatedFeature(collection.feature(other), rounded(cosine))
            for other, cosine in zip(related, similar, strict=True)
            if cosine > 0
        )
        for related, similar in zip(others.tolist(), values.tolist(), strict=True)
    ]

"""Features of a transcoder on texts: where they fire, how often, what they write, and which matter.

``feature_activations`` looks at one text, ``activation_statistics`` at many. The first position of a context is left
out everywhere, as in training, unless the transcoder uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from open_clt.data.contexts import pack_contexts
from open_clt.errors import TextError
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.sparse.codes import SparseFeatures, active_counts
from open_clt.transcoders.transcoder import Transcoder


@final
@dataclass(frozen=True, eq=False)
class FeatureActivations:
    """The active features at every position and layer of one text."""

    tokens: tuple[str, ...]
    """The text of each position's token."""
    layers: tuple[SparseFeatures, ...]
    """Features of each layer; their batch is the positions, and the first has none unless the transcoder uses it."""

    def dense(self) -> Float[Tensor, "position layer feature"]:
        """All activations as one tensor, zeros included."""
        return torch.stack([layer.dense() for layer in self.layers], dim=1)

    def of(self, chosen: Sequence[Feature]) -> Float[Tensor, "some position"]:
        """Activations of some features along the text."""
        found = torch.zeros(len(chosen), len(self.tokens))
        for row, feature in enumerate(chosen):
            active = self.layers[feature.layer]
            entries = active.features == feature.index
            found[row, active.rows[entries].cpu()] = active.values[entries].float().cpu()
        return found


class TopFeature(NamedTuple):
    """A feature, and where on a text it is most active."""

    feature: Feature
    position: int
    token: str
    activation: float


@torch.no_grad()
def feature_activations(
    model: LanguageModel, transcoder: Transcoder, text: str | Int[Tensor, "position"]
) -> FeatureActivations:
    """Encode one text, or its tokens; raises TextError if it is empty or longer than the model reads."""
    tokens = model.tokenize(text) if isinstance(text, str) else text
    features = _encode(model, transcoder, tokens[None])
    # Positions that were not encoded get a row without entries.
    unused = transcoder.first_position
    layers = [
        SparseFeatures(part.values, part.features, functional.pad(part.offsets, (unused, 0)), part.n_features)
        for part in features
    ]
    return FeatureActivations(tuple(model.token_strings(tokens)), tuple(layers))


def top_features(activations: FeatureActivations, top_n: int = 10) -> list[TopFeature]:
    """The features with the largest activation anywhere on a text, strongest first; each stands there once."""
    found: list[TopFeature] = []
    for layer, active in enumerate(activations.layers):
        order = active.values.argsort(descending=True, stable=True)
        rows, indices, values = (column[order].tolist() for column in (active.rows, active.features, active.values))
        seen: set[int] = set()
        for position, index, value in zip(rows, indices, values, strict=True):
            if value <= 0 or len(seen) == top_n:
                break
            if index not in seen:
                seen.add(index)
                found.append(TopFeature(Feature(layer, index), position, activations.tokens[position], value))
    return sorted(found, key=lambda top: -top.activation)[:top_n]


@final
@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """What every feature did on some texts, packed into contexts."""

    contexts: Int[Tensor, "context position"]
    tokens: int
    """Tokens that were encoded: all but the first of each context, or all if the transcoder uses the first."""
    density: Float[Tensor, "layer feature"]
    """Share of the tokens on which a feature is active."""
    mean: Float[Tensor, "layer feature"]
    """Mean activation over all tokens, zeros included."""
    maximum: Float[Tensor, "layer feature"]
    best_contexts: Int[Tensor, "layer feature example"]
    """Contexts in which a feature reaches its largest activations, largest first."""
    best_values: Float[Tensor, "layer feature example"]
    """Those activations; 0 where a feature is active in fewer contexts."""
    activity: Float[Tensor, "token layer"]
    """How much each layer's features write at each token: activations times decoder norms, summed."""


@torch.no_grad()
def activation_statistics(
    model: LanguageModel,
    transcoder: Transcoder,
    texts: Iterable[str],
    *,
    context_length: int = 64,
    max_contexts: int | None = None,
    n_examples: int = 10,
    batch_size: int = 16,
) -> ActivationStatistics:
    """Encode texts, packed into contexts, and count; raises TextError if they hold hardly any tokens.

    Only the first ``max_contexts`` contexts are used.
    """
    contexts = pack_contexts(texts, model, context_length)[:max_contexts]
    encoded = contexts.shape[1] - transcoder.first_position
    shape = (transcoder.config.n_layers, transcoder.config.n_features)
    norms = transcoder.decoder_norms().float()
    counts, sums = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.double)
    best_values = torch.zeros(*shape, n_examples)
    best_contexts = torch.zeros(*shape, n_examples, dtype=torch.long)
    activity: list[Tensor] = []
    for start, features in _encoded(model, transcoder, contexts, batch_size):
        for layer, active in enumerate(features):
            counts[layer] += active_counts(active).cpu()
            sums[layer].index_add_(0, active.features.cpu(), active.values.double().cpu())
            peaks = _peak_per_context(active, encoded)
            values = torch.cat([best_values[layer], peaks.T], dim=1)
            numbers = torch.arange(start, start + peaks.shape[0]).expand(shape[1], -1)
            numbers = torch.cat([best_contexts[layer], numbers], dim=1)
            best_values[layer], order = values.topk(n_examples, dim=1)
            best_contexts[layer] = numbers.gather(1, order)
        activity.append(torch.stack([_written(active, norms[layer]) for layer, active in enumerate(features)], dim=1))
    tokens = contexts.shape[0] * encoded
    return ActivationStatistics(
        contexts=contexts,
        tokens=tokens,
        density=counts / tokens,
        mean=(sums / tokens).float(),
        maximum=best_values[..., 0].clone(),
        best_contexts=best_contexts,
        best_values=best_values,
        activity=torch.cat(activity),
    )


@torch.no_grad()
def activations_of(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    chosen: Sequence[Feature],
    *,
    batch_size: int = 16,
) -> Float[Tensor, "token some"]:
    """Activations of some features on the tokens of some contexts: all that the transcoder uses, one row each."""
    parts: list[Tensor] = []
    for _, features in _encoded(model, transcoder, contexts, batch_size):
        part = torch.zeros(features[0].batch, len(chosen))
        for column, feature in enumerate(chosen):
            active = features[feature.layer]
            entries = active.features == feature.index
            part[active.rows[entries].cpu(), column] = active.values[entries].float().cpu()
        parts.append(part)
    return torch.cat(parts)


def feature_importance(statistics: ActivationStatistics, transcoder: Transcoder) -> Float[Tensor, "layer feature"]:
    """Share of everything written that each feature writes: mean activation times decoder norm, over the sum of all.

    Decoder norms are in standardised units, so that no layer counts for more because its MLP outputs are larger.
    """
    written = statistics.mean * transcoder.decoder_norms().detach().float().cpu()
    return written / written.sum().clamp(min=1e-30)


@torch.no_grad()
def layer_activity(activations: FeatureActivations, transcoder: Transcoder) -> Float[Tensor, "layer position"]:
    """How much the features of each layer write at each position of a text: activations times decoder norms, summed."""
    norms = transcoder.decoder_norms().float()
    return torch.stack([_written(active, norms[layer]) for layer, active in enumerate(activations.layers)])


def most_important(importance: Float[Tensor, "layer feature"], top_n: int) -> list[Feature]:
    """The features with the largest positive importance, largest first."""
    values, order = importance.flatten().topk(min(top_n, importance.numel()))
    width = importance.shape[1]
    return [Feature(*divmod(int(place), width)) for place, value in zip(order, values, strict=True) if value > 0]


def cross_layer_correlations(columns: Float[Tensor, "token column"]) -> Float[Tensor, "column column"]:
    """Pearson correlation over tokens of each column with each: columns are features, or the activity of layers.

    A column that never changes correlates with nothing: 0, and 1 with itself.
    """
    centred = columns.double() - columns.double().mean(0)
    norms = centred.norm(dim=0)
    # What rounding leaves of a constant is no variation.
    varies = norms > 1e-9 * columns.double().norm(dim=0)
    directions = torch.where(varies, centred / norms.clamp(min=1e-30), 0)
    matrix = (directions.T @ directions).clamp(-1, 1)
    return matrix.fill_diagonal_(1).float()


def _encode(
    model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"]
) -> list[SparseFeatures]:
    """Features of all layers at all positions that the transcoder uses, context after context."""
    check_fits(transcoder, model)
    captured = model.capture(contexts, transcoder.config.input_hook, with_logits=False)
    inputs = captured.inputs[:, transcoder.first_position :].flatten(0, 1).to(transcoder.device, transcoder.dtype)
    if inputs.shape[0] == 0:
        raise TextError("The text is a single token, whose features mean nothing; give at least two.")
    return transcoder.encode(inputs)


def _encoded(
    model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"], batch_size: int
) -> Iterator[tuple[int, list[SparseFeatures]]]:
    """Number of the first context, and features, of one batch of contexts after another."""
    for start in range(0, contexts.shape[0], batch_size):
        yield start, _encode(model, transcoder, contexts[start : start + batch_size])


def _peak_per_context(active: SparseFeatures, length: int) -> Float[Tensor, "context feature"]:
    """Largest activation of each feature in each context of ``length`` encoded tokens."""
    contexts = active.batch // length
    peaks = torch.zeros(contexts * active.n_features)
    places = (active.rows // length) * active.n_features + active.features
    return peaks.scatter_reduce(0, places.cpu(), active.values.float().cpu(), "amax").view(contexts, -1)


def _written(active: SparseFeatures, norms: Float[Tensor, "feature"]) -> Float[Tensor, "token"]:
    """Activations times decoder norms, summed per token."""
    sizes = active.values.float() * norms[active.features]
    return torch.zeros(active.batch, device=sizes.device).index_add(0, active.rows, sizes).cpu()

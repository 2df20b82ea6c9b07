"""Feature activity on texts: where and how often features are active, how much they write, and which matter most.

``feature_activations`` describes one text, ``activation_statistics`` describes many. The first position of a context is
left out everywhere, as in training, unless the transcoder uses it.
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
from open_clt.html_repr import html_repr
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.language.prompts import Prompt, prompt_tokens
from open_clt.progress import report_progress
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.sparse.codes import SparseFeatures, active_counts
from open_clt.transcoders.transcoder import Transcoder


@final
@dataclass(frozen=True, eq=False)
class FeatureActivations:
    """The active features at every position and layer of one text."""

    tokens: tuple[str, ...]
    """Text of the token at each position."""
    layers: tuple[SparseFeatures, ...]
    """Active features of each layer of the language model, one row per position.

    The first position does not have any unless the transcoder uses it, and neither have layers that the transcoder
    leaves out."""

    def dense(self) -> Float[Tensor, "position layer feature"]:
        """All activations as one tensor, zeros included."""
        return torch.stack([layer.dense() for layer in self.layers], dim=1)

    def of(self, chosen: Sequence[Feature]) -> Float[Tensor, "chosen position"]:
        """Activations of the chosen features at each position of the text."""
        activations = torch.zeros(len(chosen), len(self.tokens))
        for row, feature in enumerate(chosen):
            active = self.layers[feature.layer]
            entries = active.features == feature.index
            activations[row, active.rows[entries].cpu()] = active.values[entries].float().cpu()
        return activations

    __repr__ = short_repr
    _repr_html_ = html_repr


class TopFeature(NamedTuple):
    """A feature, and the position of a text at which it is most active."""

    feature: Feature
    """The feature."""
    position: int
    """Position of the largest activation."""
    token: str
    """Text of the token at that position."""
    activation: float
    """Largest activation of the feature."""


class TopFeatures(list[TopFeature]):
    """The most active features of a text as a list, which a notebook shows as a table."""

    _repr_html_ = html_repr


@torch.no_grad()
def feature_activations(model: LanguageModel, transcoder: Transcoder, text: Prompt) -> FeatureActivations:
    """Encode a text, or its tokens; raises TextError if it is empty or longer than the model's context."""
    tokens = prompt_tokens(model, text)
    features = encode_contexts(model, transcoder, tokens[None])
    # Positions and layers that are not encoded get rows without entries.
    unused = transcoder.first_position
    by_layer = {
        layer: SparseFeatures(
            active.values, active.features, functional.pad(active.offsets, (unused, 0)), active.n_features
        )
        for layer, active in zip(transcoder.config.model_layers, features, strict=True)
    }
    nothing = features[0].kept(torch.zeros_like(features[0].values, dtype=torch.bool))
    empty = SparseFeatures(
        nothing.values, nothing.features, functional.pad(nothing.offsets, (unused, 0)), nothing.n_features
    )
    layers = [by_layer.get(layer, empty) for layer in range(model.n_layers)]
    return FeatureActivations(tuple(model.token_strings(tokens)), tuple(layers))


def top_features(activations: FeatureActivations, top_n: int = 10) -> TopFeatures:
    """The features with the largest activations on a text, strongest first, each with its largest activation.

    Here and below, an activation is as large as its absolute value: some nonlinearities have negative activations.
    """
    top: list[TopFeature] = []
    for layer, active in enumerate(activations.layers):
        order = active.values.abs().argsort(descending=True, stable=True)
        rows, indices, values = (column[order].tolist() for column in (active.rows, active.features, active.values))
        seen: set[int] = set()
        for position, index, value in zip(rows, indices, values, strict=True):
            if value == 0 or len(seen) == top_n:
                break
            if index not in seen:
                seen.add(index)
                top.append(TopFeature(Feature(layer, index), position, activations.tokens[position], value))
    return TopFeatures(sorted(top, key=lambda entry: -abs(entry.activation))[:top_n])


@final
@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Statistics of every feature on some texts, packed into contexts.

    The axis ``layer`` has the transcoder's layers, whose numbers in the language model are ``layers``.
    """

    contexts: Int[Tensor, "context position"]
    """Tokens of each context."""
    tokens: int
    """Number of encoded tokens: all but the first of each context, or all if the transcoder uses the first position."""
    density: Float[Tensor, "layer feature"]
    """Share of the tokens on which each feature is active."""
    mean: Float[Tensor, "layer feature"]
    """Mean size of each feature's activations over all tokens, zeros included."""
    activity: Float[Tensor, "token layer"]
    """Amount that the features of each layer write at each token: the sum of activations' sizes times decoder norms."""
    layers: tuple[int, ...]
    """The language model's layer at each place of the axis ``layer``."""

    __repr__ = short_repr


@torch.no_grad()
def activation_statistics(
    model: LanguageModel,
    transcoder: Transcoder,
    texts: Iterable[str],
    *,
    context_length: int = 64,
    max_contexts: int | None = None,
    batch_size: int = 16,
) -> ActivationStatistics:
    """Compute statistics of every feature on texts, which are packed into contexts of ``context_length`` tokens.

    Only the first ``max_contexts`` contexts are used. All contexts are kept in memory; ``collect_features`` measures
    long texts. Raises TextError if the texts do not fill a context.
    """
    contexts = pack_contexts(texts, model, context_length)[:max_contexts]
    encoded = contexts.shape[1] - transcoder.first_position
    shape = (transcoder.config.n_layers, transcoder.config.n_features)
    norms = transcoder.decoder_norms().float()
    counts, sums = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.double)
    activity: list[Tensor] = []
    for features in _encoded_batches(model, transcoder, contexts, batch_size):
        for layer, active in enumerate(features):
            counts[layer] += active_counts(active).cpu()
            sums[layer].index_add_(0, active.features.cpu(), active.values.abs().cpu().double())
        activity.append(torch.stack([_written(active, norms[layer]) for layer, active in enumerate(features)], dim=1))
    tokens = contexts.shape[0] * encoded
    return ActivationStatistics(
        contexts=contexts,
        tokens=tokens,
        density=counts / tokens,
        mean=(sums / tokens).float(),
        activity=torch.cat(activity),
        layers=transcoder.config.model_layers,
    )


@torch.no_grad()
def activations_of(
    model: LanguageModel,
    transcoder: Transcoder,
    contexts: Int[Tensor, "context position"],
    chosen: Sequence[Feature],
    *,
    batch_size: int = 16,
) -> Float[Tensor, "token chosen"]:
    """Activations of the chosen features on all tokens of some contexts that the transcoder uses, one row per token."""
    batches: list[Tensor] = []
    for features in _encoded_batches(model, transcoder, contexts, batch_size):
        columns = torch.zeros(features[0].batch, len(chosen))
        for column, feature in enumerate(chosen):
            active = features[transcoder.config.place_of(feature.layer)]
            entries = active.features == feature.index
            columns[active.rows[entries].cpu(), column] = active.values[entries].float().cpu()
        batches.append(columns)
    return torch.cat(batches)


def feature_importance(statistics: ActivationStatistics, transcoder: Transcoder) -> Float[Tensor, "layer feature"]:
    """Share of each feature in everything that features write: mean size times decoder norm, over the total.

    Decoder norms are in the units of the transcoder's weights. A folded transcoder, such as training returns, has
    raw units: a layer with larger MLP outputs then counts for more.
    """
    written = statistics.mean * transcoder.decoder_norms().detach().float().cpu()
    return written / written.sum().clamp(min=1e-30)


@torch.no_grad()
def layer_activity(activations: FeatureActivations, transcoder: Transcoder) -> Float[Tensor, "layer position"]:
    """Amount that each layer's features write at each position of a text: the sum of sizes times decoder norms.

    A layer that the transcoder leaves out writes nothing.
    """
    norms = dict(zip(transcoder.config.model_layers, transcoder.decoder_norms().float(), strict=True))
    none = torch.zeros(transcoder.config.n_features, device=transcoder.device)
    return torch.stack([_written(active, norms.get(layer, none)) for layer, active in enumerate(activations.layers)])


def most_important(
    importance: Float[Tensor, "layer feature"], top_n: int, layers: Sequence[int] | None = None
) -> list[Feature]:
    """The features with the largest positive importance, largest first.

    ``layers`` are the language model's layers along the axis ``layer``, by default all from 0 on.
    """
    values, order = importance.flatten().topk(min(top_n, importance.numel()))
    layers = range(len(importance)) if layers is None else layers
    cells = [divmod(int(cell), importance.shape[1]) for cell, value in zip(order, values, strict=True) if value > 0]
    return [Feature(layers[place], index) for place, index in cells]


def cross_layer_correlations(columns: Float[Tensor, "token column"]) -> Float[Tensor, "column column"]:
    """Pearson correlations, over tokens, of all pairs of columns, which are features or the activity of layers.

    The correlation of a constant column with any other column is 0, and with itself 1.
    """
    centred = columns.double() - columns.double().mean(0)
    norms = centred.norm(dim=0)
    # Rounding leaves a small norm even for a constant column.
    varies = norms > 1e-9 * columns.double().norm(dim=0)
    directions = torch.where(varies, centred / norms.clamp(min=1e-30), 0)
    matrix = (directions.T @ directions).clamp(-1, 1)
    return matrix.fill_diagonal_(1).float()


def encode_contexts(
    model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"]
) -> list[SparseFeatures]:
    """Features of all layers of a transcoder, with one row per position that it uses, context by context."""
    check_fits(transcoder, model)
    config = transcoder.config
    captured = model.capture(contexts, config.input_hook, config.input_hook, layers=config.layers)
    inputs = captured.inputs[:, transcoder.first_position :].flatten(0, 1).to(transcoder.device, transcoder.dtype)
    if inputs.shape[0] == 0:
        raise TextError("The text has no token after the first position, which is not used; give at least two tokens.")
    return transcoder.encode(inputs)


def _encoded_batches(
    model: LanguageModel, transcoder: Transcoder, contexts: Int[Tensor, "context position"], batch_size: int
) -> Iterator[list[SparseFeatures]]:
    """Yield the features of all layers for each batch of contexts."""
    batches = contexts.split(batch_size)
    for number, batch in enumerate(batches):
        report_progress("measuring features", number, len(batches))
        yield encode_contexts(model, transcoder, batch)


def _written(active: SparseFeatures, norms: Float[Tensor, "feature"]) -> Float[Tensor, "token"]:
    """Sum of the sizes of activations times decoder norms for each token."""
    sizes = active.values.float().abs() * norms[active.features]
    return torch.zeros(active.batch, device=sizes.device).index_add(0, active.rows, sizes).cpu()

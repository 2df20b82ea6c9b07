"""Figure data: the arrays that figures of features show, computed from a language model, its transcoder and texts.

    activations_on(clt, text)         data of a heatmap of activations
    FeaturesOnTexts(clt, texts)       statistics of all features on some texts, which give
        .importance                   data of a bar chart of importance
        .embedding()                  data of a map of features, by what they write or by where they are active
        .layer_correlations()         data of a correlation matrix of layers
        .feature_correlations()       data of a correlation matrix of single features
    output_effects(clt, features)     output tokens that features raise and lower

``clt`` is a TranscodedModel: any object that holds a language model and its transcoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from open_clt.errors import ConfigError, TextError
from open_clt.features.embedding import EmbeddingSpace
from open_clt.features.firing import (
    FeatureActivations,
    activation_statistics,
    activations_of,
    cross_layer_correlations,
    feature_activations,
    feature_importance,
    most_important,
)
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.transcoder import Transcoder

_CONTEXT_LENGTH = 64
_AT_ONCE = 64
"""Number of features whose effects on all output tokens are in memory at once."""


@runtime_checkable
class TranscodedModel(Protocol):
    """Any object that holds a language model and its transcoder, such as an OpenCrossLayerTranscoder."""

    @property
    def language_model(self) -> LanguageModel:
        """The language model that the transcoder was trained on."""
        ...

    @property
    def transcoder(self) -> Transcoder:
        """The transcoder that replaces the language model's MLPs."""
        ...


class ModelAndTranscoder(NamedTuple):
    """A language model and its transcoder as a pair."""

    language_model: LanguageModel
    """The language model that the transcoder was trained on."""
    transcoder: Transcoder
    """The transcoder that replaces the language model's MLPs."""


class FeatureDirections(NamedTuple):
    """Vectors of some features; similar features have similar directions."""

    directions: Float[Tensor, "chosen dimension"]
    """Vector of each feature: its decoder direction, or a vector whose cosines are correlations of activations."""
    features: list[Feature]
    """The features."""
    layers: list[int]
    """Layer of each feature."""
    importance: Float[Tensor, "chosen"]
    """Share of each feature in everything that the transcoder's features write."""
    n_layers: int
    """Number of layers of the language model, including those without a feature in this selection."""

    __repr__ = short_repr


class Correlations(NamedTuple):
    """The correlations of features, or of layers, with each other."""

    matrix: Float[Tensor, "row row"]
    """Correlation of each row's feature or layer with each other one."""
    names: list[str]
    """Name of each row's feature or layer."""
    layers: list[int] | None = None
    """Layer of each row in ascending order; None if each row is a whole layer."""

    __repr__ = short_repr


def transcoded_model(model: object, transcoder: object) -> TranscodedModel:
    """A language model with its transcoder, given as two objects or as one object that holds both.

    If ``transcoder`` is an object that holds both, a ``model`` given with it replaces that object's language model.
    Raises ConfigError if the language model or the transcoder is missing.
    """
    if model is None and isinstance(transcoder, TranscodedModel):
        return transcoder
    if isinstance(model, LanguageModel) and isinstance(transcoder, Transcoder | TranscodedModel):
        return ModelAndTranscoder(model, transcoder if isinstance(transcoder, Transcoder) else transcoder.transcoder)
    raise ConfigError(
        f"model is of type {type(model).__name__} and transcoder is of type {type(transcoder).__name__}; give a "
        "LanguageModel and a Transcoder, or as transcoder an object that holds both, such as an "
        "OpenCrossLayerTranscoder."
    )


def activations_on(source: TranscodedModel, text: object) -> FeatureActivations:
    """The active features at every position and layer of a text; raises ConfigError if ``text`` is not a string."""
    if not isinstance(text, str):
        raise ConfigError(f"text is {text!r}; give a string, on which the features are shown.")
    return feature_activations(source.language_model, source.transcoder, text)


class OutputEffects(NamedTuple):
    """The output tokens on which a feature has most effect."""

    raises: tuple[str, ...]
    """Tokens whose logits the sum of the feature's decoders raises most."""
    lowers: tuple[str, ...]
    """Tokens whose logits the sum of the feature's decoders lowers most."""

    __repr__ = short_repr


@torch.no_grad()
def output_effects(source: TranscodedModel, chosen: Sequence[Feature], count: int = 5) -> dict[Feature, OutputEffects]:
    """The ``count`` output tokens that each feature raises and lowers most; empty for a mixture of linear transforms.

    The features of such a mixture write what depends on the input.
    """
    model = source.language_model
    if not isinstance(source.transcoder, CrossLayerTranscoder):
        return {}
    outputs: dict[Feature, OutputEffects] = {}
    for start in range(0, len(chosen), _AT_ONCE):
        features = chosen[start : start + _AT_ONCE]
        effects = model.unembedding.effects(decoder_directions(source.transcoder, features))
        most = min(count, effects.shape[1])
        for feature, raised, lowered in zip(
            features, effects.topk(most).indices, effects.topk(most, largest=False).indices, strict=True
        ):
            outputs[feature] = OutputEffects(tuple(model.token_strings(raised)), tuple(model.token_strings(lowered)))
    return outputs


@final
class FeaturesOnTexts:
    """Statistics of a transcoder's features on a text or texts, of which at most ``max_contexts`` contexts are read.

    Raises ConfigError if ``texts`` are not strings, TextError if they do not fill a context.
    """

    def __init__(self, source: TranscodedModel, texts: object, *, max_contexts: int = 256) -> None:
        self._source = source
        self.statistics = activation_statistics(
            source.language_model,
            source.transcoder,
            _strings(texts),
            context_length=_CONTEXT_LENGTH,
            max_contexts=max_contexts,
        )
        self.importance: Float[Tensor, "layer feature"] = feature_importance(self.statistics, source.transcoder)
        """Share of each feature in everything that the transcoder's features write."""
        self.layers = self.statistics.layers
        """The language model's layer of each row of ``importance``."""

    @property
    def subject(self) -> str:
        """The name of the language model and the number of tokens."""
        return f"{self._source.language_model.name}, {self.statistics.tokens:,} tokens"

    def embedding(self, top_n: int = 500, space: EmbeddingSpace = "decoder") -> FeatureDirections:
        """Vectors of the ``top_n`` most important features, most important first: what they write, or co-activation."""
        chosen = most_important(self.importance, top_n, self.layers)
        of_space = {"decoder": self._decoder_directions, "coactivation": self._coactivations}
        return FeatureDirections(
            directions=of_space[space](chosen),
            features=chosen,
            layers=[feature.layer for feature in chosen],
            importance=torch.tensor(
                [float(self.importance[self.layers.index(feature.layer), feature.index]) for feature in chosen]
            ),
            n_layers=self._source.language_model.n_layers,
        )

    def layer_correlations(self) -> Correlations:
        """Correlations of how much the features of each layer write at each token."""
        names = [f"L{layer}" for layer in self.layers]
        return Correlations(cross_layer_correlations(self.statistics.activity), names)

    def feature_correlations(self, top_n: int = 40) -> Correlations:
        """Correlations of the activations of the ``top_n`` most important features, sorted by layer."""
        chosen = sorted(most_important(self.importance, top_n, self.layers))
        return Correlations(
            matrix=self._correlations(chosen),
            names=[str(feature) for feature in chosen],
            layers=[feature.layer for feature in chosen],
        )

    def _correlations(self, chosen: Sequence[Feature]) -> Float[Tensor, "chosen chosen"]:
        """Correlations, over all tokens, of the activations of the chosen features."""
        columns = activations_of(self._source.language_model, self._source.transcoder, self.statistics.contexts, chosen)
        return cross_layer_correlations(columns)

    def _decoder_directions(self, chosen: Sequence[Feature]) -> Float[Tensor, "chosen d_model"]:
        return decoder_directions(self._source.transcoder, chosen)

    def _coactivations(self, chosen: Sequence[Feature]) -> Float[Tensor, "chosen chosen"]:
        """Vectors whose cosines are the correlations of activations: a square root of the matrix of correlations.

        They have as many entries as there are chosen features, while the activations have one entry per token.
        """
        variances, axes = torch.linalg.eigh(self._correlations(chosen).double())
        return (axes * variances.clamp(min=0).sqrt()).float()


def _strings(texts: object) -> Sequence[str]:
    """A text or texts as a sequence of strings."""
    if isinstance(texts, str):
        return [texts]
    values = list(cast(Iterable[Any], texts)) if isinstance(texts, Iterable) else [texts]
    if not values:
        raise TextError("texts is empty; give at least one text.")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"A text is {value!r}, of type {type(value).__name__}; give a string or several strings.")
    return cast(list[str], values)

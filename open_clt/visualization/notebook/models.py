"""Views of models: language models, transcoders, and objects that hold both."""

from __future__ import annotations

from typing import Any

from open_clt.config import NonlinearityConfig
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.neurons.transcoder import NeuronTranscoder
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.notebook.html import Markup, card, facts


def transcoder_view(transcoder: Transcoder) -> str:
    """The shape, hooks and nonlinearity of a transcoder."""
    return card("Transcoder", _facts_of(transcoder))


def language_model_view(model: LanguageModel) -> str:
    """The shape of a language model."""
    return card(model.name, _facts_of_model(model), note="language model")


def facade_view(clt: Any) -> str:
    """A language model and its transcoder."""
    note = "" if clt.is_trained else "untrained: call train_transcoder or load_model"
    model = facts([("language model", _line_of(clt.language_model))])
    return card(type(clt).__name__, model, _facts_of(clt.transcoder), note=note)


def replacement_view(replacement: ReplacementModel) -> str:
    """A language model, the transcoder in place of its MLPs, and the layers that it replaces."""
    layers, n_layers = sorted(replacement.layers), replacement.model.n_layers
    rows = [
        ("language model", _line_of(replacement.model)),
        ("replaced", "all layers" if len(layers) == n_layers else f"layers {', '.join(map(str, layers))}"),
        ("error correction", "yes: it computes what the original computes" if replacement.error_correction else "no"),
    ]
    return card(type(replacement).__name__, facts(rows), _facts_of(replacement.transcoder))


def _facts_of(transcoder: Transcoder) -> Markup:
    config = transcoder.config
    reach = getattr(config, "reach", 1)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in transcoder.parameters())
    place = f"{weights / 2**20:,.1f} MiB in memory" + ("" if transcoder.stored is None else ", the rest in its files")
    return facts(
        [
            ("kind", type(transcoder).__name__),
            ("features", f"{config.n_layers} layers × {config.n_features:,} of width {config.d_model:,}"),
            ("at the layers", config.layer_words if config.layers is not None else ""),
            ("each writes to", "its layer and all later ones" if reach is None else f"{reach} layers, from its own on"),
            ("reads", config.input_hook),
            ("reconstructs", config.target_hook),
            ("nonlinearity", "" if isinstance(transcoder, NeuronTranscoder) else _nonlinearity(config.nonlinearity)),
            ("skip path", "yes" if config.skip else ""),
            ("prefixes", ", ".join(map(str, getattr(config, "prefixes", ())))),
            ("first position", "used" if config.use_first_position else "not used"),
            ("parameters", f"{transcoder.n_parameters:,}; {place}"),
            ("computes in", f"{str(transcoder.dtype).removeprefix('torch.')} on {transcoder.device}"),
            ("trained for", config.language_model),
        ]
    )


def _nonlinearity(config: NonlinearityConfig) -> str:
    """The name of a nonlinearity, and how many features it keeps."""
    k, across = getattr(config, "k", None), getattr(config, "across_layers", False)
    name = type(config).__name__.removesuffix("Config")
    return name + (f", k = {k}" if k is not None else "") + (" across layers" if across else "")


def _facts_of_model(model: LanguageModel) -> Markup:
    return facts(
        [
            ("layers", f"{model.n_layers} of width {model.d_model:,}, {model.n_heads} heads"),
            ("vocabulary", f"{model.vocab_size:,} tokens"),
            ("context", f"{model.context_length:,} tokens"),
            ("computes in", f"{str(model.dtype).removeprefix('torch.')} on {model.device}"),
        ]
    )


def _line_of(model: LanguageModel) -> str:
    return f"{model.name}: {model.n_layers} layers, width {model.d_model:,}, {model.vocab_size:,} tokens"

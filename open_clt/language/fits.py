"""The check that a transcoder fits a language model."""

from __future__ import annotations

from open_clt.config import TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.transcoder import Transcoder


def check_fits(transcoder: Transcoder | TranscoderConfig, model: LanguageModel, *, same_device: bool = False) -> None:
    """Raise ConfigError if a transcoder, or a transcoder of this config, does not fit a language model.

    They must have the same number of layers and the same width. A transcoder of some layers needs a model that has
    these layers. With ``same_device`` they must also be on one device.
    """
    config = transcoder.config if isinstance(transcoder, Transcoder) else transcoder
    if config.layers is not None and config.layers[-1] >= model.n_layers:
        raise ConfigError(
            f"The transcoder has the layers {config.layer_words}, but the language model {model.name!r} has "
            f"n_layers = {model.n_layers}, so it does not have layer {config.layers[-1]}; its layers are 0 to "
            f"{model.n_layers - 1}."
        )
    n_layers = model.n_layers if config.layers is not None else config.n_layers
    if (n_layers, config.d_model) != (model.n_layers, model.d_model):
        made_for = f", made for {config.language_model!r}," if config.language_model else ""
        raise ConfigError(
            f"The transcoder{made_for} has n_layers = {n_layers} and d_model = {config.d_model}, "
            f"but the language model {model.name!r} has n_layers = {model.n_layers} and d_model = {model.d_model}; "
            "use the language model that it was made for, or a transcoder that was trained on this one."
        )
    if same_device and isinstance(transcoder, Transcoder) and transcoder.device != model.device:
        raise ConfigError(
            f"The transcoder is on {transcoder.device}, but the language model {model.name!r} is on {model.device}; "
            "move one of them to the other's device."
        )

"""The check that a transcoder and a language model belong together."""

from __future__ import annotations

from open_clt.config import TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.transcoder import Transcoder


def check_fits(transcoder: Transcoder | TranscoderConfig, model: LanguageModel, *, same_device: bool = False) -> None:
    """Raise ConfigError if a transcoder, or one of this config, cannot be used with a language model.

    Both must have as many layers of the same width, and lie on one device where ``same_device`` asks for it.
    """
    config = transcoder.config if isinstance(transcoder, Transcoder) else transcoder
    if (config.n_layers, config.d_model) != (model.n_layers, model.d_model):
        made_for = f", made for {config.language_model!r}," if config.language_model else ""
        raise ConfigError(
            f"The transcoder{made_for} has n_layers = {config.n_layers} and d_model = {config.d_model}, "
            f"but the language model {model.name!r} has {model.n_layers} and {model.d_model}; use two that belong "
            "together."
        )
    if same_device and isinstance(transcoder, Transcoder) and transcoder.device != model.device:
        raise ConfigError(
            f"The transcoder is on {transcoder.device}, but the language model {model.name!r} is on {model.device}; "
            "move one of them to the other's device."
        )

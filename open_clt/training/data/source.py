"""The source of activations of a call from Python: a language model and texts or contexts, or a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from open_clt.config import TrainingConfig, TranscoderConfig
from open_clt.config.ignored import check_stored_activations
from open_clt.errors import ConfigError
from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.training.data.activations import ModelOnContexts, ModelOnTexts, model_on
from open_clt.training.data.stored import StoredActivations, complete_config


def source_of(
    model: LanguageModel | None,
    texts_or_contexts: Iterable[str] | Int[Tensor, "context position"] | None,
    config: TranscoderConfig,
    training: TrainingConfig | None,
    data: str | Path | None,
) -> tuple[TranscoderConfig, TrainingConfig, StoredActivations | ModelOnTexts | ModelOnContexts]:
    """The source of the activations of ``train_transcoder``, and the complete configs."""
    training = training or TrainingConfig()
    if data is not None:
        if training.dataset.path not in (None, str(data)):
            raise ConfigError(
                f"data is {str(data)!r}, but dataset.path of the training config is {training.dataset.path!r}; give "
                "one of the two."
            )
        training = replace(training, dataset=replace(training.dataset, path=str(data)))
    if training.dataset.path is None:
        if model is None or texts_or_contexts is None:
            missing = "model" if model is None else "texts_or_contexts"
            raise ConfigError(
                f"{missing} is missing; give a language model and texts, or a dataset of activations (data)."
            )
        check_fits(config, model)
        return config, training, model_on(model, texts_or_contexts, training)
    if texts_or_contexts is not None:
        raise ConfigError("Texts are given beside a dataset of activations (data); give one of the two.")
    check_stored_activations(training)
    source = StoredActivations(config=training.dataset, model=model)
    return complete_config(config, source), training, source

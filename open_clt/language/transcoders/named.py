"""The transcoder that a source means for a language model: its own neurons, or a stored transcoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clt.language.fits import check_fits
from open_clt.language.language_model import LanguageModel
from open_clt.language.transcoders.neurons import neurons_of
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.neurons.source import is_neurons
from open_clt.transcoders.transcoder import Transcoder


def transcoder_of(
    model: LanguageModel, source: str | Path, *, own_class: type[Any] | None = None, trust_code: bool = False
) -> Transcoder:
    """The transcoder that a source means for a model, on the model's device.

    The text ``neurons`` means the MLP neurons of the model; a directory of that name is ``./neurons``, or a Path. Any
    other source, ``own_class`` and ``trust_code`` are those of ``load_transcoder``. Raises what ``load_transcoder``
    raises, LanguageModelError if the model has no neurons, and ConfigError if the transcoder does not fit the model.
    """
    if is_neurons(source):
        return neurons_of(model)
    transcoder = load_transcoder(source, device=model.device, own_class=own_class, trust_code=trust_code)
    check_fits(transcoder, model)
    return transcoder

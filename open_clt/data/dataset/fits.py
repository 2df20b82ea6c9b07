"""The check that a dataset of activations fits a transcoder."""

from __future__ import annotations

from pathlib import Path

from open_clt.config import TranscoderConfig
from open_clt.data.dataset.manifest import Harvested
from open_clt.errors import ConfigError


def check_dataset_fits(harvested: Harvested, config: TranscoderConfig, source: str | Path) -> None:
    """Raise ConfigError, which names the first difference, if the dataset at ``source`` does not fit a transcoder.

    Hooks, number of layers and width must be equal, and so must the language models, if the transcoder states its own.
    A transcoder of some layers needs a dataset that has these layers, and may have more.
    """
    theirs, ours = config.language_model, harvested.model
    if theirs is not None and _last_part(theirs) != _last_part(ours):
        raise ConfigError(
            f"{source} holds activations of the language model {ours!r}, but the transcoder was made for {theirs!r}; "
            "give a dataset of that model."
        )
    if config.layers is not None and config.layers[-1] >= harvested.n_layers:
        raise ConfigError(
            f"{source} holds activations of layers 0 to {harvested.n_layers - 1}, but the transcoder has layer "
            f"{config.layers[-1]}; give a dataset of its language model."
        )
    for name in ("input_hook", "target_hook", *(() if config.layers else ("n_layers",)), "d_model"):
        theirs, ours = getattr(config, name), getattr(harvested, name)
        if theirs != ours:
            raise ConfigError(
                f"{source} holds activations with {name} = {ours!r}, but the transcoder has {name} = {theirs!r}; give "
                "a dataset that was harvested with the transcoder's hooks from its language model."
            )


def _last_part(model: str) -> str:
    """The last part of a model's name, which is the same for the model on the hub and for its copy in a directory."""
    return Path(model).name.lower()

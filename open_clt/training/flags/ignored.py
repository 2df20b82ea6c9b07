"""Ignored settings of ``open-clt train``: one that is given, but that the run would not use, is refused by its flag.

A setting counts as given if a flag or a file names it, also with its default value.
"""

from __future__ import annotations

from typing import Any

from open_clt.config import ReportConfig, TrainingConfig
from open_clt.config.ignored import (
    LOSS_SETTINGS,
    MODEL_SETTINGS,
    OPTIMIZER_SETTINGS,
    SOURCE_SETTINGS,
    refuse_given,
    unused_settings,
)
from open_clt.training.trainer import Settings, writes_checkpoints

_OWN_STORE = "data.class_path brings activations of its own"
_DATASET = "data.path is a dataset of activations"


def check_replaced(given: Settings) -> None:
    """Raise ConfigError for a setting of something that another setting replaces or turns off.

    ``given`` holds the settings of a command line, before any of them is used.
    """
    data, training, report, checkpoints = (
        _group(given, name) for name in ("data", "training", "report", "checkpoints")
    )
    texts, loss = _group(data, "texts"), _group(training, "loss")
    if "class_path" in loss:
        refuse_given(loss, LOSS_SETTINGS, "training.loss", "training.loss.class_path replaces the loss")
    if "class_path" in _group(training, "optimizer"):
        refuse_given(training, OPTIMIZER_SETTINGS, "training", "training.optimizer has settings of its own")
    if data.get("path") is not None:
        _check_beside_dataset(data, texts, report)
    elif "class_path" in data:
        refuse_given(texts, texts, "data.texts", _OWN_STORE)
        refuse_given(data, MODEL_SETTINGS, "data", _OWN_STORE)
        refuse_given(report, report, "report", f"{_OWN_STORE}, so no report on held-out text is made")
    elif "class_path" in texts:
        refuse_given(texts, SOURCE_SETTINGS, "data.texts", "data.texts.class_path brings texts of its own")
    if texts.get("held_out_contexts") == 0 and "path" not in data:
        refuse_given(report, report, "report", "data.texts.held_out_contexts is 0, so no report is made")
        if checkpoints.get("best") is True:
            why = "data.texts.held_out_contexts is 0, so no checkpoint is measured"
            refuse_given(checkpoints, ["best"], "checkpoints", why)
    if report.get("graphs", ReportConfig.graphs) == 0:
        refuse_given(report, [name for name in report if name != "graphs"], "report", "report.graphs is 0")
    if not writes_checkpoints(_group(given, "trainer")):
        refuse_given(checkpoints, checkpoints, "checkpoints", "trainer.enable_checkpointing is false")


def _check_beside_dataset(data: Settings, texts: Settings, report: Settings) -> None:
    """Raise ConfigError for a setting that is not used beside a dataset of activations."""
    refuse_given(data, ["class_path", "harvest_batch_size"], "data", _DATASET)
    if "language_model" not in data:
        unused = "no language model is given that could be evaluated on texts (data.language_model)"
        refuse_given(texts, texts, "data.texts", f"{_DATASET}, and {unused}")
        refuse_given(data, MODEL_SETTINGS, "data", f"{_DATASET}, and {unused}")
        refuse_given(report, report, "report", f"{_DATASET}, and {unused}")


def check_unused_flags(given: Settings, training: TrainingConfig) -> None:
    """Raise ConfigError for a setting that another setting of the same config turns off."""
    for unused in unused_settings(training):
        part, *rest = unused.part.split(".")
        key = ".".join([{"learning": "training", "dataset": "data"}.get(part, part), *rest])
        values: Any = given
        for name in key.split("."):
            values = _group(values, name)
        refuse_given(values, unused.names, key, unused.reason)


def _group(settings: Settings, name: str) -> Settings:
    """The settings of a group; an empty dictionary if none of them is given."""
    return settings.get(name) or {}

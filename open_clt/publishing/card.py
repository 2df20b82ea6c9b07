"""Model cards: the README.md of a transcoder on the hub, made of what its files and its report say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import yaml

from open_clt.evaluation.report import Report, comparison_table, layer_table
from open_clt.hub.repository import HubName
from open_clt.publishing.records import PushedRecords
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.info import TranscoderInfo

CARD = "README.md"
_MARK = "<!-- `open-clt push` wrote this card, and replaces it. Delete this line to keep your changes. -->"
_MODEL_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_LONGEST_ID = 96
"""Number of characters of the longest name that the hub allows."""
_NOT_ON_HUB = ("embedded", "unknown")
_CIRCUIT_TRACER = ("circuit-tracer", "circuit-tracer-layers")
"""Layouts that circuit-tracer reads."""
_HELD_OUT = {"fvu": "FVU", "l0": "L0", "dead_share": "share of dead features", "tokens": "held-out tokens"}
"""Numbers of a training run that a card shows for a transcoder without a report."""


@final
@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What a card says of a transcoder."""

    name: HubName
    """Repository and branch that the transcoder is pushed to."""
    info: TranscoderInfo
    """What the files of the transcoder say."""
    own_class: bool = False
    """Whether the transcoder is of a user's own class."""
    report: Report | None = None
    """Evaluation report, if there is one."""
    features: PushedRecords | None = None
    """Feature records, if there are any."""
    record: Mapping[str, Any]
    """Record of the training run; empty if there is none."""
    license: str | None = None
    """Identifier of the license, such as ``mit``."""

    __repr__ = short_repr


def is_our_card(text: str) -> bool:
    """Whether ``make_card`` wrote a card, and its user did not claim it; such a card may be replaced."""
    return _MARK in text


def base_model(info: TranscoderInfo) -> str | None:
    """The name on the hub of the language model of a transcoder; None for a directory, or if it is not stated."""
    model = info.config.language_model
    if model is None or model in _NOT_ON_HUB:
        return None
    is_name = len(model) <= _LONGEST_ID and _MODEL_ID.fullmatch(model) is not None
    return model if is_name and not Path(model).exists() else None


def make_card(content: CardContent) -> str:
    """The model card as Markdown with a YAML header: description, use, numbers, training."""
    parts = [
        _header(content),
        _MARK,
        f"# {content.name.repo.rpartition('/')[2]}",
        _description(content),
        _use(content),
        *_numbers(content),
        *_features(content.features),
        *_training(content.record),
    ]
    return "\n\n".join(parts) + "\n"


def _header(content: CardContent) -> str:
    model = base_model(content.info)
    kind = "cross-layer-transcoder" if content.info.config.reach_of(0) > 1 else "transcoder"
    kind = "sparse-autoencoder" if _is_autoencoder(content) else kind
    circuit_tracer = ["circuit-tracer"] if content.info.layout in _CIRCUIT_TRACER else []
    settings = {
        "library_name": "open-clt",
        **({"license": content.license} if content.license else {}),
        **({"base_model": model} if model else {}),
        "tags": [kind, "sparse-features", "interpretability", *circuit_tracer],
    }
    return f"---\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}---"


def _description(content: CardContent) -> str:
    rows = dict(content.info.rows())
    if base_model(content.info) is None and content.info.config.language_model not in (None, *_NOT_ON_HUB):
        rows["language model"] = "a model that is not on the hub"  # a path says something about its machine only
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    text = (
        "A transcoder: sparse features that read one hidden state of a language model in each layer and write another."
    )
    if _is_autoencoder(content):
        text = "An autoencoder: sparse features of the hidden states of a language model."
    return f"{text}\n\n| | |\n|---|---|\n{table}"


def _is_autoencoder(content: CardContent) -> bool:
    config = content.info.config
    return config.input_hook == config.target_hook


def _cell(value: str) -> str:
    """A value as text of one cell of a Markdown table."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(value.split()))


def _use(content: CardContent) -> str:
    trust = ", trust_code=True" if content.own_class else ""
    snippet = f'from open_clt import load_transcoder\n\ntranscoder = load_transcoder("{content.name}"{trust})'
    text = f"## Use\n\nWith [OpenCLT](https://pypi.org/project/open-clt):\n\n{_block('python', snippet)}"
    if content.own_class:
        text += "\n\n`trust_code=True` imports the transcoder's class, which must be installed; its code runs."
    model = base_model(content.info)
    if content.info.layout not in _CIRCUIT_TRACER or model is None:
        return text
    snippet = (
        "from circuit_tracer import ReplacementModel\n\n"
        f'model = ReplacementModel.from_pretrained("{model}", "{content.name}")'
    )
    return f"{text}\n\nWith [circuit-tracer](https://github.com/decoderesearch/circuit-tracer):\n\n" + _block(
        "python", snippet
    )


def _numbers(content: CardContent) -> list[str]:
    """The sections on the numbers: those of the report, or those on held-out tokens of training, or none."""
    if content.report is not None:
        tables = f"{comparison_table([content.report])}\n\n{layer_table(content.report)}"
        return [
            "## Evaluation",
            "Numbers on held-out text, as `open-clt evaluate` prints them:",
            _block("text", tables),
        ]
    held_out = content.record.get("held_out")
    if not isinstance(held_out, dict):
        return []
    numbers = cast(dict[str, Any], held_out)
    known = {label: numbers.get(name) for name, label in _HELD_OUT.items()}
    rows = [f"| {label} | {value:.6g} |" for label, value in known.items() if isinstance(value, int | float)]
    return ["## Evaluation", "| on held-out tokens | |\n|---|---|\n" + "\n".join(rows)] if rows else []


def _features(records: PushedRecords | None) -> list[str]:
    """The section on the feature records; none without records."""
    if records is None:
        return []
    text = (
        f"The folder `features` describes {records.n_records:,} features: where each is active, and which output "
        "tokens it raises. Circuit-tracer's viewer reads these files."
    )
    if (about := records.about) is not None:
        text += f" They were measured on {about.tokens:,} tokens ({_cell(about.text)})."
    return [f"## Features\n\n{text}"]


def _training(record: Mapping[str, Any]) -> list[str]:
    """The section on how the transcoder was trained; none if its files do not say it."""
    settings, steps, tokens = (record.get(name) for name in ("settings", "steps", "tokens"))
    if not isinstance(settings, dict):
        return []
    text = f"## Training\n\n{_dataset(record.get('dataset'))}"
    if isinstance(steps, int) and isinstance(tokens, int):
        text += f"OpenCLT trained this transcoder for {steps:,} steps on {tokens:,} tokens, with these settings:\n\n"
    else:
        text += "OpenCLT trained this transcoder with these settings:\n\n"
    return [text + _block("json", json.dumps(settings, indent=1))]


def _dataset(about: object) -> str:
    """A sentence on the dataset of activations that a transcoder was trained on; empty without one."""
    match about:
        case {"tokens": int(tokens), "model": str(model), "input_hook": str(read), "target_hook": str(written)}:
            hooks = f"from {_cell(read)} to {_cell(written)}"
            return f"The transcoder learned from a dataset of {tokens:,} tokens of {_cell(model)}, {hooks}. "
        case _:
            return ""


def _block(language: str, text: str) -> str:
    """A block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"

"""What commands share: how models, prompts, features and numbers are given in a shell."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.replacement.interventions.intervention import Intervention
    from open_clt.replacement.model import ReplacementModel

AddParser: TypeAlias = Callable[..., argparse.ArgumentParser]
"""Adds a command to those of ``open-clt``: argparse's own ``add_parser``."""

_FEATURES = "features, as layer:position:feature; '2:*:417' is at every position, 2:-1:417 at the last"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """A language model, and a transcoder of its MLPs."""
    parser.add_argument("--model", default="embedded", help="name, directory, .gguf file (default: embedded)")
    parser.add_argument("--transcoder", default=None, help="its directory, or embedded (default: that of the model)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def load(arguments: argparse.Namespace) -> OpenCrossLayerTranscoder:
    """The language model and the transcoder that a command names."""
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    if arguments.transcoder is None:
        return OpenCrossLayerTranscoder.from_pretrained(arguments.model, device=arguments.device)
    clt = OpenCrossLayerTranscoder(arguments.model, device=arguments.device)
    clt.load_model(transcoder_directory(arguments.transcoder))
    return clt


def transcoder_directory(name: str) -> Path:
    """Where a transcoder lies that a command line names: ``embedded`` is the one that ships with the package."""
    from open_clt.embedded import TRANSCODER_DIRECTORY

    return TRANSCODER_DIRECTORY if name == "embedded" else Path(name)


def corrected(clt: OpenCrossLayerTranscoder) -> ReplacementModel:
    """The language model itself, with features to intervene on: only what they write is changed in its MLP outputs."""
    from open_clt.replacement.model import ReplacementModel

    return ReplacementModel(clt.language_model, clt.transcoder, error_correction=True)


def add_intervention_options(parser: argparse.ArgumentParser) -> None:
    """What to do to which features."""
    for name, shape, what in (
        ("--ablate", "L:P:F", f"set to 0 these {_FEATURES}"),
        ("--set", "L:P:F=VALUE", "set these to a value"),
        ("--scale", "L:P:F=FACTOR", "multiply these by a factor"),
    ):
        parser.add_argument(name, nargs="+", action="extend", default=[], metavar=shape, help=what)


def read_interventions(arguments: argparse.Namespace) -> list[Intervention]:
    """The interventions that were asked for: ablations, then values, then factors; raises ConfigError on bad names."""
    from open_clt.replacement.interventions.intervention import interventions_on

    found = interventions_on(arguments.ablate, value=0.0)
    for name, number in _assignments(arguments.set):
        found += interventions_on(name, value=number)
    for name, number in _assignments(arguments.scale):
        found += interventions_on(name, scale=number)
    return found


def _assignments(texts: Sequence[str]) -> list[tuple[str, float]]:
    """``FEATURE=NUMBER`` taken apart; raises ConfigError on anything else."""
    found: list[tuple[str, float]] = []
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found.append((name, float(number)))
        except ValueError as error:
            raise ConfigError(f"{text!r} is no FEATURE=NUMBER; write 2:5:417=3.5.") from error
        if not math.isfinite(found[-1][1]):
            raise ConfigError(f"{text!r} is not finite; an activation is a number such as 3.5.")
    return found

"""The command ``open-clt intervene``: change features on a prompt and print how predictions and features change."""

from __future__ import annotations

import argparse

from open_clt.commands.options import (
    AddParser,
    add_chat_option,
    add_command,
    add_intervention_options,
    add_model_options,
    corrected,
    load,
    read_interventions,
)
from open_clt.errors import ConfigError


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    summary = "Change features on a prompt, and print how predictions and other features change."
    parser = add_command(add_parser, "intervene", summary)
    add_model_options(parser)
    parser.add_argument("--prompt", "-p", required=True, help="Text on which features are changed.")
    add_chat_option(parser.add_argument)
    add_intervention_options(parser)
    parser.add_argument(
        "--constrained",
        action="store_true",
        help="Measure direct effects only, as the edges of an attribution graph do: other features keep their values.",
    )
    parser.add_argument("--top", type=int, default=5, help="Number of tokens and of features to list (default: 5).")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the predictions before and after the interventions, and the features that changed."""
    from open_clt.replacement.interventions.intervene import intervene
    from open_clt.replacement.interventions.intervention import Constrained, Iterative

    interventions = read_interventions(arguments)
    if not interventions:
        raise ConfigError("No feature is given; name at least one with --ablate, --set or --scale.")
    patching = Constrained() if arguments.constrained else Iterative()
    model = corrected(load(arguments))
    record = intervene(model, arguments.prompt, interventions, patching, top=arguments.top, chat=arguments.chat)
    print(record.summary(arguments.top))
    return 0

"""``open-clt intervene``: change features on a prompt, and see what that changes."""

from __future__ import annotations

import argparse

from open_clt.commands.options import (
    AddParser,
    add_intervention_options,
    add_model_options,
    corrected,
    load,
    read_interventions,
)
from open_clt.errors import ConfigError


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("intervene", help="change features on a prompt, and see what that changes")
    add_model_options(parser)
    parser.add_argument("--prompt", required=True, help="the text whose features are changed")
    add_intervention_options(parser)
    parser.add_argument("--constrained", action="store_true", help="direct effects only, as a graph has them")
    parser.add_argument("--top", type=int, default=5, help="tokens and features to list (default: 5)")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the predictions before and after, and what else changed."""
    from open_clt.replacement.interventions.intervene import intervene
    from open_clt.replacement.interventions.intervention import Constrained, Iterative

    interventions = read_interventions(arguments)
    if not interventions:
        raise ConfigError("No feature was named; name at least one with --ablate, --set or --scale.")
    patching = Constrained() if arguments.constrained else Iterative()
    record = intervene(corrected(load(arguments)), arguments.prompt, interventions, patching, top=arguments.top)
    print(record.summary(arguments.top))
    return 0

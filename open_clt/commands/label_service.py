"""Options for a language model that labels features, behind an OpenAI-compatible endpoint, and the labels it writes.

The key is read from an environment variable, because values of options are visible to all users of a machine.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from open_clt.commands.options import integer
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.features.labelling.background import Background
    from open_clt.features.labelling.service.endpoint import Endpoint
    from open_clt.features.records import FeatureRecord
    from open_clt.transcoders.feature import Feature

_KEY_VARIABLE = "OPENAI_API_KEY"
_LIMIT = 100
_SCORERS = ("detection", "fuzzing", "none")
_GROUP = (
    "A language model behind an OpenAI-compatible endpoint, such as a local server or a service, can write labels. "
    "Your own labels (--labels) win over them, and they win over automatic ones. Examples from the text are sent to "
    "the endpoint."
)


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the endpoint."""
    option = parser.add_argument_group("labels by a language model", _GROUP).add_argument
    option("--label-endpoint", metavar="URL", help="Address of the endpoint, such as http://127.0.0.1:8000/v1.")
    option("--label-model", metavar="NAME", help="Name of the language model, as the endpoint knows it.")
    option(
        "--label-key-env",
        type=_variable,
        metavar="VARIABLE",
        help=f"Environment variable that holds the key of the endpoint (default: {_KEY_VARIABLE}, if it is set).",
    )
    option(
        "--label-limit",
        type=integer(least=1),
        metavar="N",
        help="Largest number of features that the language model labels; they are spread evenly over all active "
        f"features without a label of yours (default: {_LIMIT}).",
    )
    option(
        "--label-scorer",
        choices=_SCORERS,
        help="How the language model scores its labels on held-out examples, in about 20 requests for each feature "
        "(default: detection).",
    )


def read_endpoint(arguments: argparse.Namespace) -> Endpoint | None:
    """Return the endpoint of the options, None without one; raise ConfigError if the options do not fit together."""
    from open_clt.features.labelling.service.endpoint import Endpoint

    if arguments.label_endpoint is None:
        for name in ("model", "key_env", "limit", "scorer"):
            if getattr(arguments, f"label_{name}") is not None:
                flag = f"--label-{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} needs --label-endpoint, the address of a language model that labels features."
                )
        return None
    if not arguments.label_model:
        raise ConfigError("--label-endpoint needs --label-model, the name of the language model at that address.")
    variable = arguments.label_key_env
    if variable is not None and not os.environ.get(variable):
        raise ConfigError(f"The environment variable {variable}, which --label-key-env names, is not set.")
    return Endpoint(url=arguments.label_endpoint, model=arguments.label_model, key_variable=variable or _KEY_VARIABLE)


def label_with_service(
    records: Iterable[FeatureRecord],
    candidates: Sequence[Feature],
    arguments: argparse.Namespace,
    endpoint: Endpoint,
    background: Background,
) -> Iterator[FeatureRecord]:
    """Yield each record; a share of the candidates get labels of the language model. Print how many at the end."""
    from open_clt.features.labelling.service.explained import Scorer, explain_records
    from open_clt.progress import progress_bar

    chosen = set(_spread(candidates, arguments.label_limit or _LIMIT))
    scorer: Scorer | None = next(
        (name for name in get_args(Scorer) if name == (arguments.label_scorer or "detection")), None
    )
    labelled = 0
    with progress_bar("labels") as progress:
        task = progress.add_task("labels", total=len(chosen))
        for record in explain_records(records, endpoint, background, scorer=scorer, features=chosen):
            if record.feature in chosen:
                labelled += record.label is not None and math.isnan(record.label.confidence)
                progress.advance(task)
            yield record
    print(f"{endpoint.model} labelled {labelled} of {len(candidates)} active features")


def _spread(features: Sequence[Feature], count: int) -> Sequence[Feature]:
    """At most ``count`` of the features, at equal distances in their order."""
    if len(features) <= count:
        return features
    return [features[row * len(features) // count] for row in range(count)]


def _variable(text: str) -> str:
    """The type of an option that names an environment variable; other texts are not shown, because they may be keys."""
    if not re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            "the value is not the name of an environment variable; never give the key itself"
        )
    return text

"""Options that several commands share: language model, transcoder, features and interventions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, final

from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.graphs.targets import Target
    from open_clt.language.language_model import LanguageModel
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.replacement.interventions.intervention import Intervention
    from open_clt.replacement.model import ReplacementModel
    from open_clt.transcoders.feature import Feature
    from open_clt.transcoders.transcoder import Transcoder

AddParser: TypeAlias = Callable[..., argparse.ArgumentParser]
"""Function that adds a command to ``open-clt``: the ``add_parser`` of argparse."""
AddOption: TypeAlias = Callable[..., argparse.Action]
"""Function that adds an option to a command or a group: the ``add_argument`` of argparse."""

MODEL_HELP = "Language model: a name on the Hugging Face hub, a directory, a .gguf file, or 'embedded'"
DEVICE_HELP = "Device to compute on: cpu, cuda, mps, or auto, which is the first of cuda, mps and cpu that exists"
NODE_THRESHOLD = ("--node-threshold", "--node_threshold", "--threshold")
EDGE_THRESHOLD = ("--edge-threshold", "--edge_threshold")
"""Names of the options of pruning: ours, circuit-tracer's, and a former name of ours."""
_FEATURE_NOTATION = (
    "Each is given as layer:position:feature: 2:-1:417 is feature 417 of layer 2 at the last position, '2:*:417' at "
    "every position."
)

_TARGET = (
    "Target to explain instead of the likeliest tokens: a token such as ' Austin', a difference of two tokens such as "
    "' Austin-- Dallas', or a feature as layer:position:feature. May be repeated."
)
_POSITION = "Position whose next token is explained; negative values count from the end (default: -1)."
_LABELS = 'JSON file with labels of features, such as {"L2/417": "Texas"}, or CSV file with columns feature and label.'


def _path(text: str) -> Path:
    """The type of options that are paths; an empty text is refused because it would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; write . for the working directory")
    return Path(text)


def source(text: str) -> str:
    """The type of options that name a directory or an address; an empty text is refused as in ``_path``."""
    return text if "://" in text else str(_path(text))


@final
class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError, so that its mistakes are reported in one line as all others are."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` lists all options.")


def integer(*, least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A type of an option: an integer between two bounds; the parser reports other texts with the option's name."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer between {least} and {most}")
        return value

    return read


def share(text: str) -> float:
    """The type of an option that is above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


seed = integer(least=0, most=2**32 - 2)
"""The type of options that are seeds; generated sentences use the next seed, too."""


def add_command(add_parser: AddParser, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a command whose summary is shown in the list of commands and at the top of its help."""
    parser = add_parser(name, help=summary, description=summary)
    add_loudness_options(parser, default=argparse.SUPPRESS)  # those before the command count as well
    return parser


def add_loudness_options(parser: argparse.ArgumentParser, default: object) -> None:
    """Add the options that say how much a command reports on standard error."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", default=default, help="Report errors only, without bars.")
    group.add_argument("--verbose", action="store_true", default=default, help="Report also what is being done.")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a language model and its transcoder."""
    parser.add_argument("--model", "-m", default="embedded", help=f"{MODEL_HELP} (default: embedded).")
    parser.add_argument(
        "--transcoder",
        "-t",
        "--transcoder_set",
        default=None,
        metavar="SOURCE",
        help="Transcoder: a directory, a name on the Hugging Face hub as org/name[/folder][@revision] (in both, "
        "* in a folder's name selects the folders of layers), 'embedded' "
        "for the one that ships with the package, or 'neurons' for the model's own neurons "
        "(default: the transcoder that ships for the model).",
    )
    parser.add_argument("--device", default="cpu", help=f"{DEVICE_HELP} (default: cpu).")
    add_trust_option(parser)


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a transcoder's directory name a class to import."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="Import the class that a transcoder's config.json names, from the working directory or an installed "
        "package; its code runs, so use this option only for transcoders that you trust.",
    )


def load(arguments: argparse.Namespace) -> OpenCrossLayerTranscoder:
    """Load the language model and the transcoder that the options name."""
    from open_clt.lean_imports import lean_imports
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

    # code of the user may need all that the libraries can do
    with nullcontext() if arguments.trust_code else lean_imports():
        if arguments.transcoder is None:
            return OpenCrossLayerTranscoder.from_pretrained(arguments.model, device=arguments.device)
        clt = OpenCrossLayerTranscoder(arguments.model, device=arguments.device)
    clt.load_model(transcoder_source(arguments.transcoder), trust_code=arguments.trust_code)
    return clt


def own_source(arguments: argparse.Namespace) -> str | Path | None:
    """The source of the transcoder that the options name; None for the one that ships, and for neurons."""
    from open_clt.transcoders.neurons.source import is_neurons

    if arguments.transcoder is None or is_neurons(arguments.transcoder):
        return None
    return transcoder_source(arguments.transcoder)


def add_budget_option(option: AddOption) -> None:
    """Add the option that limits the size of a graph."""
    option(
        "--max-feature-nodes",
        "--max_feature_nodes",
        type=int,
        help="Largest number of features to attribute (default: all features, or 2048 neurons).",
    )


def budget_of(arguments: argparse.Namespace, transcoder: Transcoder) -> int | None:
    """The largest number of features to attribute; None for all."""
    from open_clt.attribution.budget import default_budget

    return default_budget(transcoder) if arguments.max_feature_nodes is None else arguments.max_feature_nodes


def transcoder_source(name: str) -> str | Path:
    """Return the source that an option names; ``embedded`` means the transcoder that ships with the package."""
    from open_clt.embedded import TRANSCODER_DIRECTORY

    if not name:
        raise ConfigError("The source of the transcoder is empty; write . for the working directory.")
    return TRANSCODER_DIRECTORY if name == "embedded" else name


def add_chat_option(option: AddOption) -> None:
    """Add the option that applies the chat template of the language model to prompts."""
    option(
        "--chat",
        action="store_true",
        help="Apply the chat template of the language model to the prompt, which is a message of the user, or a JSON "
        """list of messages such as '[{"role": "user", "content": "Hi"}]'.""",
    )


def add_target_options(option: AddOption) -> None:
    """Add the options that select what a graph explains."""
    option("--target", action="append", default=[], help=_TARGET)
    option("--position", type=int, help=_POSITION)


def check_target_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if a position is given, but every target is a feature, which has a position of its own."""
    from open_clt.attribution.targets import names_feature

    if arguments.position is not None and arguments.target and all(map(names_feature, arguments.target)):
        raise ConfigError(
            f"--position is {arguments.position}, but each target is a feature with a position of its own; remove "
            "--position."
        )


def read_targets(arguments: argparse.Namespace, model: LanguageModel) -> list[Target]:
    """The targets that the options name; an empty list if they name none."""
    from open_clt.attribution.targets import read_target

    return [read_target(model, text, position_of(arguments)) for text in arguments.target]


def position_of(arguments: argparse.Namespace) -> int:
    """The position whose next token is explained."""
    return -1 if arguments.position is None else arguments.position


def add_check_options(option: AddOption, most_features: int, skip: str) -> None:
    """Add the options of the faithfulness check, of which only one can be given; ``skip`` is the help of the first."""
    option("--no-faithfulness", action="store_true", help=skip)
    option(
        "--max-features",
        type=integer(least=1),
        default=most_features,
        help=f"Largest number of features to ablate (default: {most_features}).",
    )


def add_labels_option(option: AddOption) -> None:
    """Add the option that names a file with the user's labels of features."""
    option("--labels", type=Path, metavar="FILE", help=_LABELS)


def read_labels_of(arguments: argparse.Namespace) -> dict[Feature, str]:
    """Read the labels that the option names; raise ConfigError if its file holds anything else."""
    from open_clt.features.labelling.given import read_labels

    return {} if arguments.labels is None else read_labels(arguments.labels)


def corrected(clt: OpenCrossLayerTranscoder) -> ReplacementModel:
    """Return a model with features to change; without a change it computes the same as the original model."""
    from open_clt.replacement.model import ReplacementModel

    return ReplacementModel(clt.language_model, clt.transcoder, error_correction=True)


def add_intervention_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name interventions."""
    for name, metavar, text in (
        ("--ablate", "L:P:F", f"Features to set to 0. {_FEATURE_NOTATION}"),
        ("--set", "L:P:F=VALUE", "Features to set to a value, such as 2:-1:417=3.5."),
        ("--scale", "L:P:F=FACTOR", "Features to multiply by a factor, such as 2:-1:417=0.5."),
    ):
        parser.add_argument(name, nargs="+", action="extend", default=[], metavar=metavar, help=text)


def read_interventions(arguments: argparse.Namespace) -> list[Intervention]:
    """Return the interventions of the options: ablations, then values, then factors; raise ConfigError on a bad one."""
    from open_clt.replacement.interventions.intervention import interventions_on

    interventions = interventions_on(arguments.ablate, value=0.0)
    for feature, value in _assignments(arguments.set):
        interventions += interventions_on(feature, value=value)
    for feature, factor in _assignments(arguments.scale):
        interventions += interventions_on(feature, scale=factor)
    return interventions


def _assignments(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Split each ``FEATURE=NUMBER``; raise ConfigError on any other text."""
    assignments: list[tuple[str, float]] = []
    for text in texts:
        feature, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is not of the form FEATURE=NUMBER; write, for example, 2:5:417=3.5."
            ) from error
        if not math.isfinite(value):
            raise ConfigError(f"{text!r} does not end in a finite number; write, for example, 2:5:417=3.5.")
        assignments.append((feature, value))
    return assignments

"""Held-out text: the options and contexts that ``evaluate``, ``compare`` and ``convert`` share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from open_clt.commands.options import AddOption, integer, seed, source
from open_clt.config import ReportConfig
from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import ConfigError
from open_clt.short_repr import short_repr

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.data.dataset.reader import ActivationDataset
    from open_clt.evaluation.report import Report
    from open_clt.language.language_model import LanguageModel
    from open_clt.processes import Processes
    from open_clt.replacement.model import ReplacementModel

_TEXT = (
    "Held-out text: a text, .jsonl or .parquet file, or a data set on the Hugging Face hub (default: generated "
    "sentences, for the embedded model only)."
)
_FEWEST_TOKENS = 4


class HeldOut(NamedTuple):
    """Held-out text of a language model, on which transcoders are measured."""

    contexts: Tensor
    """Tokens of the contexts, (context, position)."""
    text: str
    """Description of where the contexts come from."""
    prompts: list[str]
    """Prompts of the attribution graphs that are scored."""

    __repr__ = short_repr


@final
class _Measuring(argparse.Action):
    """Stores a value, and adds the option to ``measuring``: commands that measure nothing refuse it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.measuring = (*namespace.measuring, option_string)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the text and its length."""
    parser.set_defaults(measuring=())
    option = partial(parser.add_argument, action=_Measuring)
    add_measured_options(option, max_tokens=16_384)
    option("--seed", type=seed, default=0, help="Seed that selects the contexts of a longer text (default: 0).")


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a dataset of activations; ``add_text_options`` adds the options that it replaces."""
    parser.add_argument(
        "--data",
        type=source,
        metavar="DIR",
        action=_Measuring,
        help="Dataset of activations that `open-clt harvest` wrote, or its address on a server: no language model "
        "runs, and no text is read. Its first tokens are used, at most as many as --max-tokens says.",
    )


def read_data(arguments: argparse.Namespace) -> ActivationDataset:
    """Open the dataset that ``--data`` names; raises ConfigError for an option of a language model or a text."""
    from open_clt.data.dataset.reader import ActivationDataset

    ignored = [option for option in arguments.measuring if option not in ("--data", "--max-tokens")]
    if arguments.model != "embedded":
        ignored.append("--model")
    if ignored:
        raise ConfigError(
            f"{ignored[0]} is given, but with --data no language model reads a text; remove one of the two options."
        )
    return ActivationDataset(arguments.data)


def add_measured_options(option: AddOption, *, max_tokens: int) -> None:
    """Add the options that name a text, and say how much of it is read in contexts of which length."""
    add_source_options(option, text=_TEXT)
    option(
        "--max-tokens",
        type=integer(least=_FEWEST_TOKENS),
        default=max_tokens,
        help=f"Largest number of tokens to measure on (default: {max_tokens}).",
    )
    add_context_option(option)


def add_source_options(option: AddOption, *, text: str) -> None:
    """Add the options that name a text, whose help is ``text``."""
    option("--text", default=None, help=text)
    option(
        "--column",
        default=None,
        help="Column of the .jsonl or .parquet file or data set that holds the texts (default: text).",
    )
    option("--split", default=None, help="Split of the data set (default: train).")


def add_context_option(option: AddOption) -> None:
    """Add the option for the length of contexts."""
    option(
        "--context-length",
        type=integer(least=_FEWEST_TOKENS),
        default=None,
        help="Number of tokens in a context (default: 128, or 40 for generated sentences).",
    )


def add_held_out_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the text, the prompts of graphs, and the output directory."""
    add_text_options(parser)
    option = partial(parser.add_argument, action=_Measuring)
    option(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="Text file with the prompts of attribution graphs, one per line (default: beginnings of the contexts).",
    )
    graphs, max_features = ReportConfig.graphs, ReportConfig.max_feature_nodes
    option(
        "--graphs",
        type=int,
        default=graphs,
        help=f"Number of attribution graphs to compute and score; 0 computes none (default: {graphs}).",
    )
    option(
        "--max-feature-nodes",
        type=int,
        help=f"Largest number of features to attribute in each graph (default: {max_features}).",
    )
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="Directory for the numbers and the figure.")


def graph_settings(arguments: argparse.Namespace) -> ReportConfig:
    """The settings of the graphs that are scored; raises ConfigError for one that no graph uses."""
    given = {name: getattr(arguments, name) for name in ("prompts", "max_feature_nodes")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given if arguments.graphs == 0 else ():
        raise ConfigError(f"--{name.replace('_', '-')} is given, but --graphs is 0; remove one of the two options.")
    if arguments.prompts is not None:
        given["prompts"] = str(arguments.prompts)
    return ReportConfig(graphs=arguments.graphs, **given)


def read_held_out(arguments: argparse.Namespace, model: LanguageModel) -> HeldOut:
    """Read the contexts and prompts that the options select; the same options give the same contexts."""
    from open_clt.data.prompts import report_prompts

    contexts = read_contexts(arguments, model)
    prompts = report_prompts(graph_settings(arguments), model, contexts)
    return HeldOut(contexts, held_out_text(arguments).description, prompts)


def held_out_text(arguments: argparse.Namespace) -> HeldOutText:
    """The text that the options name."""
    names = ("column", "split", "max_tokens", "context_length")
    values = {name: getattr(arguments, name) for name in names}
    return HeldOutText(source=arguments.text, seed=arguments.seed or 0, **values)


def read_contexts(arguments: argparse.Namespace, model: LanguageModel) -> Tensor:
    """Read contexts of tokens (context, position), each of which begins with BOS."""
    return held_out_text(arguments).contexts(model)


def make_report(
    arguments: argparse.Namespace,
    replacement: ReplacementModel,
    held_out: HeldOut,
    name: str,
    processes: Processes | None = None,
) -> Report:
    """Measure one transcoder and return its report."""
    from open_clt.evaluation.report import report
    from open_clt.processes import ALONE

    return report(
        replacement,
        held_out.contexts,
        name=name,
        text=held_out.text,
        prompts=held_out.prompts,
        max_feature_nodes=graph_settings(arguments).max_feature_nodes,
        processes=processes or ALONE,
    )


def context_length(arguments: argparse.Namespace) -> int:
    """The number of tokens in a context that the options ask for."""
    return held_out_text(arguments).length


def texts_of(arguments: argparse.Namespace, model: LanguageModel, *, sentences: int) -> Iterable[str]:
    """The texts that the options name; for the embedded model without a text, at most ``sentences`` documents."""
    return held_out_text(arguments).texts(model, sentences=sentences)

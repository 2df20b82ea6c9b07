"""What ``evaluate``, ``compare`` and ``convert`` share: the text that transcoders are measured on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from open_clt.config import ReportConfig, TextsConfig
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.evaluation.report import Report
    from open_clt.language.language_model import LanguageModel
    from open_clt.replacement.model import ReplacementModel

_TEXT = (
    "held-out text: a text, .jsonl or .parquet file, or a data set of the hub (default: for the embedded model, "
    "sentences from its own generator)"
)
_CONTEXT_TOKENS, _SENTENCE_TOKENS, _FEWEST_TOKENS = 128, 40, 4


class HeldOut(NamedTuple):
    """What transcoders of a model are measured on."""

    contexts: Tensor
    """Tokens, (context, position)."""
    text: str
    """Where they come from, in words."""
    prompts: list[str]
    """What graphs are made of."""


@final
class _Measuring(argparse.Action):
    """Keeps a value, and in ``measuring`` that one was typed: a report that was stored before knows nothing of it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.measuring = True


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Which text, and how much of it."""
    parser.set_defaults(measuring=False)
    option = partial(parser.add_argument, action=_Measuring)
    option("--text", default=None, help=_TEXT)
    option("--column", default="text", help="of a .jsonl or .parquet file or data set (default: text)")
    option("--split", default="train", help="of a data set (default: train)")
    option("--max-tokens", type=int, default=16_384, help="measure on at most this many tokens (default: 16384)")
    option("--context-length", type=int, default=None, help="tokens of a context (default: 128; of sentences, 40)")
    option("--seed", type=int, default=0, help="which contexts of a longer text are taken (default: 0)")


def add_held_out_options(parser: argparse.ArgumentParser) -> None:
    """Which text, how much of it, and which prompts."""
    add_text_options(parser)
    option = partial(parser.add_argument, action=_Measuring)
    option("--prompts", type=Path, metavar="FILE", help="prompts for graphs, one a line (default: from the text)")
    graphs, rows = ReportConfig.graphs, ReportConfig.max_feature_nodes
    option("--graphs", type=int, default=graphs, help=f"graphs to score, 0 for none (default: {graphs})")
    option("--max-feature-nodes", type=int, default=rows, help=f"features attributed in each (default: {rows})")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory for the numbers and the figure")


def read_held_out(arguments: argparse.Namespace, model: LanguageModel) -> HeldOut:
    """The contexts and prompts that were asked for; the same text and seed give the same ones."""
    from open_clt.data.prompts import report_prompts

    contexts = read_contexts(arguments, model)
    settings = ReportConfig(
        prompts=None if arguments.prompts is None else str(arguments.prompts),
        graphs=arguments.graphs,
        max_feature_nodes=arguments.max_feature_nodes,
    )
    origin = "the embedded model's sentences" if arguments.text is None else arguments.text
    return HeldOut(contexts, f"{origin}, seed {arguments.seed}", report_prompts(settings, model, contexts))


def read_contexts(arguments: argparse.Namespace, model: LanguageModel) -> Tensor:
    """Contexts of tokens (context, position), each beginning with BOS."""
    import torch

    from open_clt.data.contexts import pack_contexts

    # The embedded model was trained on contexts that begin as a document begins and are hardly longer than one.
    length = arguments.context_length or (_SENTENCE_TOKENS if arguments.text is None else _CONTEXT_TOKENS)
    for name, value in (("max-tokens", arguments.max_tokens), ("context-length", length)):
        if value < _FEWEST_TOKENS:
            raise ConfigError(f"--{name} is {value}; give at least {_FEWEST_TOKENS}.")
    length = min(length, model.context_length)
    wanted = max(1, arguments.max_tokens // length)
    contexts = pack_contexts(
        _texts(arguments, model), model, length, from_start=arguments.text is None, max_contexts=4 * wanted
    )
    order = torch.randperm(contexts.shape[0], generator=torch.Generator().manual_seed(arguments.seed))
    return contexts[order[:wanted].sort().values]


def make_report(arguments: argparse.Namespace, replacement: ReplacementModel, held_out: HeldOut, name: str) -> Report:
    """The report of one transcoder."""
    from open_clt.evaluation.report import report

    return report(
        replacement,
        held_out.contexts,
        name=name,
        text=held_out.text,
        prompts=held_out.prompts,
        max_feature_nodes=arguments.max_feature_nodes,
    )


def _texts(arguments: argparse.Namespace, model: LanguageModel) -> Iterable[str]:
    from open_clt.data.texts import open_texts
    from open_clt.embedded.corpus import generate_texts

    if arguments.text is None:
        if model.name != "embedded":
            raise ConfigError("There is no text to measure on; name a file or a data set with --text.")
        return islice(generate_texts(20_000, seed=arguments.seed + 1), 20_000)
    return open_texts(TextsConfig(source=arguments.text, column=arguments.column, split=arguments.split))

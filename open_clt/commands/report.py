"""The command ``open-clt report``: write one HTML file about a prompt, which opens in a browser without a network.

The file shows what the model and the replacement model predict, the attribution graph, its features with examples, the
check against interventions, and how all this was made. Examples come from the first of

    --features DIR         feature files, in DIR/features
    --text SOURCE          a pass over a text; with --max-tokens and no text, over sentences for the embedded model
    the records            feature files of the transcoder: in its own directory, in the cache, or in the package
    generated sentences    a pass over them, for the embedded model
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_clt.commands.held_out import add_text_options, read_contexts
from open_clt.commands.options import (
    EDGE_THRESHOLD,
    NODE_THRESHOLD,
    AddParser,
    add_budget_option,
    add_chat_option,
    add_check_options,
    add_command,
    add_labels_option,
    add_model_options,
    add_target_options,
    budget_of,
    check_target_options,
    integer,
    load,
    own_source,
    position_of,
    read_labels_of,
    read_targets,
)
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.features.feature_files import FeatureFiles
    from open_clt.language.language_model import LanguageModel
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

_FEATURES = (
    "Directory whose folder `features` holds feature files with examples (default: the records of the transcoder, if "
    "there are any and no option asks for a text)."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "report", "Write one HTML file about a prompt: predictions, graph, features.")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", "-p", required=True, help="Prompt to explain.")
    add_chat_option(option)
    add_target_options(option)
    option("--output", "-o", type=Path, required=True, metavar="FILE", help="The report, an .html file.")
    add_budget_option(option)
    option(*NODE_THRESHOLD, type=float, default=0.8, help="Share of node influence that is shown (default: 0.8).")
    option(*EDGE_THRESHOLD, type=float, default=0.98, help="Share of edge influence that is shown (default: 0.98).")
    add_labels_option(option)
    check = parser.add_mutually_exclusive_group()
    add_check_options(check.add_argument, 8, "Skip the check, which ablates features.")
    option(
        "--neurons",
        type=integer(least=1),
        metavar="N",
        help="Compare the graph with one of the model's own neurons, of which N have rows (2048 is a good number for "
        "the embedded model, 256 for one of GPT-2's size).",
    )
    option("--features", type=Path, metavar="DIR", help=_FEATURES)
    add_text_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the options, compute everything, and write the file."""
    from open_clt.graphs.targets import SalientLogits
    from open_clt.visualization.prompt_report.features import check_fits_files
    from open_clt.visualization.prompt_report.report import check_report_path, write_report

    check_report_path(arguments.output)
    check_target_options(arguments)
    if arguments.features is not None and arguments.measuring:
        raise ConfigError(
            f"--features and {arguments.measuring[-1]} are given, but examples come from feature files or from a text; "
            "remove one of the two options."
        )
    labels = read_labels_of(arguments)
    if arguments.features is not None:
        check_fits_files(arguments.features)
    clt = load(arguments)
    model, records = clt.language_model, _records(arguments, clt)
    path = write_report(
        model,
        clt.transcoder,
        arguments.prompt,
        arguments.output,
        source=own_source(arguments),
        features=None if records is None else records.folder.parent,
        texts=None if records is not None else _texts(arguments, model),
        labels=labels,
        node_threshold=arguments.node_threshold,
        edge_threshold=arguments.edge_threshold,
        max_ablations=0 if arguments.no_faithfulness else arguments.max_features,
        neurons=arguments.neurons,
        facts=_facts(arguments, records),
        targets=read_targets(arguments, model) or SalientLogits(position=position_of(arguments)),
        max_feature_nodes=budget_of(arguments, clt.transcoder),
        chat=arguments.chat,
    )
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _records(arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder) -> FeatureFiles | None:
    """The feature files that the option names, or the records of the transcoder unless an option asks for a text."""
    from open_clt.features.feature_files import FeatureFiles
    from open_clt.features.places import find_records

    if arguments.features is not None:
        return FeatureFiles(arguments.features)
    return None if arguments.measuring else find_records(own_source(arguments), clt.transcoder)


def _texts(arguments: argparse.Namespace, model: LanguageModel) -> Tensor | None:
    """Contexts of the text, or of generated sentences for the embedded model; None for other models without a text.

    Raises ConfigError if an option asks for contexts of another model, but no text is given.
    """
    return read_contexts(arguments, model) if arguments.measuring or model.name == "embedded" else None


def _facts(arguments: argparse.Namespace, records: FeatureFiles | None) -> dict[str, Any]:
    source = arguments.transcoder or "the transcoder that ships with the package"
    return {"source of the transcoder": source, "source of the examples": _source_of_examples(arguments, records)}


def _source_of_examples(arguments: argparse.Namespace, records: FeatureFiles | None) -> str:
    if records is None:
        text = arguments.text or "generated sentences"
        return f"at most {arguments.max_tokens} tokens of {text} (seed {arguments.seed})"
    about = records.about()
    if about is None:
        return f"feature files in {records.folder.parent}"
    return f"feature records, measured on {about.tokens:,} tokens of {about.text}"

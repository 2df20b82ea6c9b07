"""The command ``open-clt report``: write one HTML file about a prompt, which opens in a browser without a network.

The file shows what the model and the replacement model predict, the attribution graph, its features with examples, the
check against interventions, and how all this was made. Examples come from the first of

    --features DIR         feature files, in DIR/features
    the transcoder         feature files in the transcoder's own directory
    --text SOURCE          a pass over a text; for the embedded model, sentences are generated if no text is given
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_clt.commands.held_out import add_text_options, read_contexts
from open_clt.commands.options import (
    AddParser,
    add_chat_option,
    add_command,
    add_labels_option,
    add_model_options,
    add_target_options,
    integer,
    load,
    read_labels_of,
    transcoder_source,
)

if TYPE_CHECKING:
    from torch import Tensor

    from open_clt.language.language_model import LanguageModel

_FEATURES = (
    "Directory whose folder `features` holds feature files with examples (default: that of the transcoder, if it has "
    "any)."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "report", "Write one HTML file about a prompt: predictions, graph, features.")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", required=True, help="Prompt to explain.")
    add_chat_option(option)
    add_target_options(option)
    option("--output", type=Path, required=True, metavar="FILE", help="The report, an .html file.")
    option(
        "--max-feature-nodes", type=int, default=None, help="Largest number of features to attribute (default: all)."
    )
    option("--threshold", type=float, default=0.8, help="Share of node influence that is shown (default: 0.8).")
    option("--edge-threshold", type=float, default=0.98, help="Share of edge influence that is shown (default: 0.98).")
    add_labels_option(option)
    option("--no-faithfulness", action="store_true", help="Skip the check, which ablates features.")
    option(
        "--max-features", type=integer(least=1), default=8, help="Largest number of features to ablate (default: 8)."
    )
    option("--features", type=Path, metavar="DIR", help=_FEATURES)
    add_text_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the options, compute everything, and write the file."""
    from open_clt.attribution.targets import read_target
    from open_clt.graphs.targets import SalientLogits
    from open_clt.visualization.prompt_report.features import check_fits_files
    from open_clt.visualization.prompt_report.report import check_report_path, write_report

    check_report_path(arguments.output)
    labels, features = read_labels_of(arguments), _features(arguments)
    if features is not None:
        check_fits_files(features)
    clt = load(arguments)
    model = clt.language_model
    path = write_report(
        model,
        clt.transcoder,
        arguments.prompt,
        arguments.output,
        features=features,
        texts=None if features is not None else _texts(arguments, model),
        labels=labels,
        node_threshold=arguments.threshold,
        edge_threshold=arguments.edge_threshold,
        max_ablations=0 if arguments.no_faithfulness else arguments.max_features,
        facts=_facts(arguments, features),
        targets=[read_target(model, text, arguments.position) for text in arguments.target]
        or SalientLogits(position=arguments.position),
        max_feature_nodes=arguments.max_feature_nodes,
        chat=arguments.chat,
    )
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _features(arguments: argparse.Namespace) -> Path | None:
    """The directory of the feature files: the one that the option names, or the transcoder's own if it has any."""
    from open_clt.embedded import TRANSCODER_DIRECTORY
    from open_clt.features.feature_files import FOLDER, INDEX

    if arguments.features is not None:
        return arguments.features
    own = Path(TRANSCODER_DIRECTORY if arguments.transcoder is None else transcoder_source(arguments.transcoder))
    return own if (own / FOLDER / INDEX).is_file() and arguments.text is None else None


def _texts(arguments: argparse.Namespace, model: LanguageModel) -> Tensor | None:
    """Contexts of the text, or of generated sentences for the embedded model; None for other models without a text."""
    return read_contexts(arguments, model) if arguments.text is not None or model.name == "embedded" else None


def _facts(arguments: argparse.Namespace, features: Path | None) -> dict[str, Any]:
    examples = (
        f"feature files in {features}"
        if features is not None
        else f"at most {arguments.max_tokens} tokens of {arguments.text or 'generated sentences'} "
        f"(seed {arguments.seed})"
    )
    source = arguments.transcoder or "the transcoder that ships with the package"
    return {"source of the transcoder": source, "source of the examples": examples}

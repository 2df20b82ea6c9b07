"""The command ``open-clt compare``: one table and one Pareto figure of several transcoders on the same text.

The command takes directories of transcoders and reports of ``open-clt evaluate --output``. It measures the transcoders
on the text that the options name. If no such option is given and every directory contains a report, as directories of
``open-clt train`` do, it uses these reports instead. It refuses to compare numbers on different text.

``--output`` is a directory for ``comparison.csv``, ``comparison.png`` and the report of each transcoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_held_out_options, graph_settings, make_report, read_held_out
from open_clt.commands.options import (
    DEVICE_HELP,
    MODEL_HELP,
    AddParser,
    add_command,
    add_trust_option,
    transcoder_source,
)
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.evaluation.report import Report

_FILES = _TABLE, _FIGURE = "comparison.csv", "comparison.png"
_TRANSCODERS = (
    "Directory of a transcoder, 'embedded' for the one that ships with the package, 'neurons' for the model's own "
    "neurons (the baseline that needs no training), or a report of `open-clt evaluate`."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "compare", "Compare several transcoders in one table and one figure.")
    parser.add_argument("transcoders", nargs="+", metavar="DIR", help=_TRANSCODERS)
    parser.add_argument("--model", default=None, help=f"{MODEL_HELP} (default: embedded).")
    parser.add_argument("--device", default="cpu", help=f"{DEVICE_HELP} (default: cpu).")
    add_trust_option(parser)
    add_held_out_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, then measure, compare and save."""
    from open_clt.evaluation.report_file import check_place
    from open_clt.files import results

    graph_settings(arguments)  # a mistake in them is found here
    paths = _paths_by_name(arguments.transcoders)
    with results(arguments.output, _FILES):
        if arguments.output is not None:
            for name in paths:
                check_place(arguments.output / name)
        _compare(arguments, paths)
    return 0


def _compare(arguments: argparse.Namespace, paths: Mapping[str, str | Path]) -> None:
    """Measure the transcoders that have no report, print the table, and save the table, the figure and the reports."""
    from open_clt.evaluation.report import comparison_table
    from open_clt.evaluation.report_file import save_report, total_row
    from open_clt.files import list_names, write_rows
    from open_clt.visualization.report_figures import visualize_comparison

    stored = _stored_reports(arguments, paths)
    unmeasured = {name: path for name, path in paths.items() if name not in stored}
    measured = dict(_measure(arguments, unmeasured, stored)) if unmeasured else {}
    reports = [(stored | measured)[name] for name in paths]
    print(comparison_table(reports))
    if arguments.output is not None:
        list_names(arguments.output, _FILES)
        for report in reports:
            save_report(report, arguments.output / report.name)
        table = write_rows(arguments.output / _TABLE, [total_row(report) for report in reports])
        visualize_comparison(reports, save_path=arguments.output / _FIGURE)
        print(f"written: {table}, {arguments.output / _FIGURE}")


def _paths_by_name(transcoders: Sequence[str]) -> dict[str, str | Path]:
    """Return the path of each transcoder by its name: the last part of the path, with parents where names repeat.

    Neurons, which have no path, stay a text.
    """
    from open_clt.transcoders.neurons.source import is_neurons

    sources = {argument: transcoder_source(argument) for argument in transcoders}
    paths = {argument: source if is_neurons(source) else Path(source) for argument, source in sources.items()}
    # The transcoder that ships with the package is named as it was typed, not after its directory.
    parts = {
        argument: path.resolve().parts[1:] if isinstance(path, Path) and path == Path(argument) else (argument,)
        for argument, path in paths.items()
    }

    def name(path_parts: tuple[str, ...]) -> str:
        others = set(parts.values()) - {path_parts}
        lengths = range(1, len(path_parts) + 2)
        shortest = next(path_parts[-n:] for n in lengths if all(other[-n:] != path_parts[-n:] for other in others))
        return "-".join(shortest).replace("*", "_")  # Windows has no file names with an asterisk

    return {name(path_parts): paths[argument] for argument, path_parts in parts.items()}


def _stored_reports(arguments: argparse.Namespace, paths: Mapping[str, str | Path]) -> dict[str, Report]:
    """Return the reports that need no new measurement; raise ConfigError if they do not suit the options."""
    from open_clt.evaluation.report_file import is_report, load_report
    from open_clt.transcoders.formats.load import holds_transcoder

    report_paths = {name: path for name, path in paths.items() if isinstance(path, Path) and is_report(path)}
    if arguments.measuring or len(report_paths) < len(paths):
        report_paths = {name: path for name, path in report_paths.items() if not holds_transcoder(path)}
    if arguments.measuring and len(report_paths) == len(paths):
        raise ConfigError(
            f"{', '.join(report_paths)} are reports without a transcoder, so they cannot be measured again; leave out "
            "the options of the measurement, or give the directories of the transcoders."
        )
    reports = {name: load_report(path)._replace(name=name) for name, path in report_paths.items()}
    for name, report in reports.items():
        if arguments.model not in (None, report.model):
            raise ConfigError(
                f"{name} was measured with the model {report.model}, but --model is {arguments.model}; leave out one "
                "of them."
            )
    return reports


def _measure(
    arguments: argparse.Namespace, paths: Mapping[str, str | Path], stored: Mapping[str, Report]
) -> Iterator[tuple[str, Report]]:
    """Measure each transcoder; raise ConfigError, before the first, if ``stored`` reports are on other contexts."""
    from open_clt.evaluation.measured_on import check_same_contexts, measured_on
    from open_clt.language.language_model import load_language_model
    from open_clt.language.transcoders.named import transcoder_of
    from open_clt.lean_imports import lean_imports
    from open_clt.replacement.model import ReplacementModel

    with nullcontext() if arguments.trust_code else lean_imports():
        model = load_language_model("embedded" if arguments.model is None else arguments.model, arguments.device)
    held_out = read_held_out(arguments, model)
    new_contexts = [measured_on(held_out.contexts, held_out.text)] * len(paths)
    stored_contexts = [report.measured_on for report in stored.values()]
    check_same_contexts([*stored, *paths], [*stored_contexts, *new_contexts])
    for name, path in paths.items():
        try:
            transcoder = transcoder_of(model, path, trust_code=arguments.trust_code)
            yield name, make_report(arguments, ReplacementModel(model, transcoder), held_out, name)
        except ConfigError as error:
            raise ConfigError(f"{path} cannot be compared. {error}") from error

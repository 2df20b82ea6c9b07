"""``open-clt compare``: several transcoders of one model, on the same text, in one table and one Pareto figure.

What is compared are transcoders' directories, and reports that ``open-clt evaluate --output`` wrote. Transcoders are
measured on the text that the flags name. Where no such flag is typed and each of them holds a report, as ``open-clt
train`` leaves one, those are taken as they are. Numbers on different text are refused.

With ``--output``: ``comparison.csv``, ``comparison.png``, and each report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_held_out_options, make_report, read_held_out
from open_clt.commands.options import AddParser, transcoder_directory
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.evaluation.report import Report

_WHICH = "transcoders (their directories, or embedded), or reports on some"


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("compare", help="several transcoders in one table and on one figure")
    parser.add_argument("transcoders", nargs="+", metavar="DIR", help=_WHICH)
    parser.add_argument("--model", default=None, help="name, directory, .gguf file (default: embedded)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add_held_out_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet; print the table, save the rest."""
    from open_clt.evaluation.report import comparison_table
    from open_clt.evaluation.report_file import save_report, total_row
    from open_clt.files import write_rows
    from open_clt.visualization.report_figures import visualize_comparison

    places = _places(arguments.transcoders)
    stored = _stored(arguments, places)
    missing = {name: place for name, place in places.items() if name not in stored}
    measured = dict(_measured(arguments, missing, stored)) if missing else {}
    reports = [(stored | measured)[name] for name in places]
    print(comparison_table(reports))
    if arguments.output is not None:
        for found in reports:
            save_report(found, arguments.output / found.name)
        rows = write_rows(arguments.output / "comparison.csv", [total_row(found) for found in reports])
        visualize_comparison(reports, save_path=arguments.output / "comparison.png")
        print(f"written: {rows}, {arguments.output / 'comparison.png'}")
    return 0


def _places(transcoders: Sequence[str]) -> dict[str, Path]:
    """Where each one lies, by its name; names that repeat are told apart by their parents'."""
    paths = {one: transcoder_directory(one) for one in transcoders}
    # The transcoder that ships is called what was typed, wherever it lies.
    parts = {one: path.resolve().parts[1:] if path == Path(one) else (one,) for one, path in paths.items()}

    def name(own: tuple[str, ...]) -> str:
        others = set(parts.values()) - {own}
        lengths = range(1, len(own) + 2)
        return "-".join(next(own[-n:] for n in lengths if all(other[-n:] != own[-n:] for other in others)))

    return {name(own): paths[one] for one, own in parts.items()}


def _stored(arguments: argparse.Namespace, places: Mapping[str, Path]) -> dict[str, Report]:
    """The reports that are taken as they are; raises ConfigError if what was typed cannot be said of them."""
    from open_clt.evaluation.report_file import is_report, load_report
    from open_clt.transcoders.formats.load import holds_transcoder

    reports = {name: place for name, place in places.items() if is_report(place)}
    if arguments.measuring or len(reports) < len(places):
        reports = {name: place for name, place in reports.items() if not holds_transcoder(place)}
    if arguments.measuring and len(reports) == len(places):
        raise ConfigError(
            f"{', '.join(reports)} are reports without a transcoder to measure anew; leave out what says how, or name "
            "the transcoders' directories."
        )
    found = {name: load_report(place)._replace(name=name) for name, place in reports.items()}
    for name, one in found.items():
        if arguments.model not in (None, one.model):
            raise ConfigError(f"{name} was measured in {one.model}, not in {arguments.model}; leave it or --model out.")
    return found


def _measured(
    arguments: argparse.Namespace, places: Mapping[str, Path], stored: Mapping[str, Report]
) -> Iterator[tuple[str, Report]]:
    """A new report of each; raises ConfigError, before the first, if it could not stand beside what is stored."""
    from open_clt.evaluation.measured_on import check_same_contexts, measured_on
    from open_clt.language.language_model import load_language_model
    from open_clt.replacement.model import ReplacementModel

    model = load_language_model(arguments.model or "embedded", arguments.device)
    held_out = read_held_out(arguments, model)
    here = [measured_on(held_out.contexts, held_out.text)] * len(places)
    check_same_contexts([*stored, *places], [*(found.measured_on for found in stored.values()), *here])
    for name, place in places.items():
        try:
            yield name, make_report(arguments, ReplacementModel(model, place), held_out, name)
        except ConfigError as error:
            raise ConfigError(f"{place} cannot be compared. {error}") from error

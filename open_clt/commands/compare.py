"""``open-clt compare``: several transcoders of one model, on the same text, in one table and one Pareto figure.

What is compared are transcoders' directories, which are measured, and reports that ``open-clt evaluate --output``
wrote, which are taken as they are. With ``--output``: ``comparison.csv``, ``comparison.png``, and each report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_held_out_options, measure, read_held_out
from open_clt.commands.options import AddParser

if TYPE_CHECKING:
    from open_clt.analysis.report import Report


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("compare", help="several transcoders in one table and on one figure")
    parser.add_argument("transcoders", nargs="+", type=Path, metavar="DIR", help="transcoders, or reports on some")
    parser.add_argument("--model", default="embedded", help="name, directory, .gguf file (default: embedded)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add_held_out_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure what was not measured before; print the table, save the rest."""
    from open_clt.analysis.report import comparison_table, save_report, write_rows
    from open_clt.visualization.report_figures import visualize_comparison

    reports = list(_reports(arguments))
    print(comparison_table(reports))
    if arguments.output is not None:
        for found in reports:
            save_report(found, arguments.output / found.name)
        rows = write_rows([found.row() for found in reports], arguments.output / "comparison.csv")
        visualize_comparison(reports, save_path=arguments.output / "comparison.png")
        print(f"written: {rows}, {arguments.output / 'comparison.png'}")
    return 0


def _reports(arguments: argparse.Namespace) -> Iterator[Report]:
    """A report of each directory, read or measured; names that repeat are told apart by their parents'."""
    from open_clt.analysis.report import is_report, load_report

    names = [path.resolve().name for path in arguments.transcoders]
    model = held_out = None
    for path, name in zip(arguments.transcoders, names, strict=True):
        own = name if names.count(name) == 1 else f"{path.resolve().parent.name}-{name}"
        if is_report(path):
            yield load_report(path)._replace(name=own)
            continue
        if model is None or held_out is None:
            from open_clt.activations.language_model import load_language_model

            model = load_language_model(arguments.model, arguments.device)
            held_out = read_held_out(arguments, model)
        from open_clt.replacement.model import ReplacementModel

        yield measure(arguments, ReplacementModel(model, path), held_out, own)

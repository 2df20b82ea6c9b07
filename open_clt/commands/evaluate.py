"""The command ``open-clt evaluate``: measure a transcoder on text that it was not trained on.

``--output`` is a directory for ``evaluation.json`` (the whole report), ``evaluation.csv`` (one row per layer),
``evaluation-totals.csv`` (one row) and ``evaluation.png``. Several processes can share the text:

    torchrun --nproc-per-node 2 -m open_clt evaluate --model gpt2 --transcoder DIRECTORY --text FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_held_out_options, graph_settings, make_report, read_held_out
from open_clt.commands.options import AddParser, add_command, add_model_options, load

if TYPE_CHECKING:
    from open_clt.processes import Processes

_FIGURE = "evaluation.png"


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "evaluate", "Measure a transcoder on held-out text.")
    add_model_options(parser)
    add_held_out_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, then measure and save."""
    from open_clt.evaluation.report_file import check_place
    from open_clt.files import results
    from open_clt.processes import joined_processes

    graph_settings(arguments)  # a mistake in them is found here
    with joined_processes() as processes, results(arguments.output if processes.is_first else None, [_FIGURE]):
        if arguments.output is not None:
            check_place(arguments.output)
        _evaluate(arguments, processes)
    return 0


def _evaluate(arguments: argparse.Namespace, processes: Processes) -> None:
    """Measure the transcoder, print two tables, and save the report and its figure."""
    from open_clt.evaluation.report import comparison_table, layer_table
    from open_clt.evaluation.report_file import save_report
    from open_clt.files import list_names
    from open_clt.visualization.report_figures import visualize_report

    clt = load(arguments)
    name = Path(arguments.transcoder or arguments.model).resolve().name
    held_out = read_held_out(arguments, clt.language_model)
    report = make_report(arguments, clt.replacement_model(), held_out, name, processes)
    if not processes.is_first:
        return
    print(layer_table(report))
    print(comparison_table([report]))
    if arguments.output is not None:
        list_names(arguments.output, [_FIGURE])
        paths = (*save_report(report, arguments.output), arguments.output / _FIGURE)
        visualize_report(report, save_path=paths[-1])
        print("written: " + ", ".join(map(str, paths)))

"""The command ``open-clt evaluate``: measure a transcoder on text that it was not trained on.

``--output`` is a directory for ``evaluation.json`` (the whole report), ``evaluation.csv`` (one row per layer),
``evaluation-totals.csv`` (one row) and ``evaluation.png``. Several processes can share the text:

    torchrun --nproc-per-node 2 -m open_clt evaluate --model gpt2 --transcoder DIRECTORY --text FILE

With ``--data``, the transcoder is measured on a dataset of activations, without a language model. Then
``evaluation.json`` is the only file, and holds the numbers that need activations only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import (
    add_data_option,
    add_held_out_options,
    graph_settings,
    make_report,
    read_data,
    read_held_out,
)
from open_clt.commands.options import AddParser, add_command, add_model_options, load, transcoder_source
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.processes import Processes

_FIGURE = "evaluation.png"
_WITHOUT_MODEL = "It was measured on a dataset of activations, without the language model."


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "evaluate", "Measure a transcoder on held-out text or activations.")
    add_model_options(parser)
    add_held_out_options(parser)
    add_data_option(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, then measure and save."""
    from open_clt.evaluation.report_file import check_place
    from open_clt.files import results
    from open_clt.processes import joined_processes

    graph_settings(arguments)  # a mistake in them is found here
    figures = [_FIGURE] if arguments.data is None else []
    with joined_processes() as processes, results(arguments.output if processes.is_first else None, figures):
        if arguments.output is not None:
            check_place(arguments.output)
        evaluate = _evaluate if arguments.data is None else _evaluate_on_data
        written = evaluate(arguments, processes)
        if written:
            print("written: " + ", ".join(map(str, written)))
    return 0


def _evaluate(arguments: argparse.Namespace, processes: Processes) -> Sequence[Path]:
    """Measure the transcoder, print two tables, save the report and its figure, and return the paths of the files."""
    from open_clt.evaluation.report import comparison_table, layer_table
    from open_clt.evaluation.report_file import save_report
    from open_clt.files import list_names
    from open_clt.visualization.report_figures import visualize_report

    clt = load(arguments)
    held_out = read_held_out(arguments, clt.language_model)
    report = make_report(arguments, clt.replacement_model(), held_out, _name(arguments), processes)
    if not processes.is_first:
        return []
    print(layer_table(report))
    print(comparison_table([report]))
    if arguments.output is None:
        return []
    list_names(arguments.output, [_FIGURE])
    paths = (*save_report(report, arguments.output), arguments.output / _FIGURE)
    visualize_report(report, save_path=paths[-1])
    return paths


def _evaluate_on_data(arguments: argparse.Namespace, processes: Processes) -> Sequence[Path]:
    """Measure the transcoder on a dataset of activations, print two tables, and save the numbers."""
    from open_clt.evaluation.reconstruction import measure_reconstruction
    from open_clt.evaluation.report_file import save_reconstruction
    from open_clt.files import listed_names
    from open_clt.transcoders.formats.load import load_transcoder
    from open_clt.transcoders.neurons.source import is_neurons

    dataset = read_data(arguments)
    place = arguments.model if arguments.transcoder is None else arguments.transcoder
    if is_neurons(arguments.transcoder):
        raise ConfigError("The neurons are the language model's own, and --data runs no language model; give a text.")
    transcoder = load_transcoder(transcoder_source(place), device=arguments.device, trust_code=arguments.trust_code)
    measured = measure_reconstruction(
        transcoder, dataset, name=_name(arguments), max_tokens=arguments.max_tokens, processes=processes
    )
    if not processes.is_first:
        return []
    print(measured.tables())
    if arguments.output is None:
        return []
    if _FIGURE in listed_names(arguments.output):
        (arguments.output / _FIGURE).unlink(missing_ok=True)  # the figure of a former report, which shows other numbers
    return [save_reconstruction(measured.as_dict(), arguments.output, reason=_WITHOUT_MODEL)]


def _name(arguments: argparse.Namespace) -> str:
    """The name of the transcoder in tables and files."""
    return Path(arguments.transcoder or arguments.model).resolve().name

"""``open-clt convert``: a TopK or BatchTopK transcoder with thresholds instead, as other tools read it.

Thresholds are fitted to text, and both transcoders measured on other text. ``--format circuit-tracer`` writes the
weights in that tool's layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from open_clt.commands.held_out import add_text_options, read_contexts
from open_clt.commands.options import AddParser, add_model_options, load


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("convert", help="turn TopK or BatchTopK into JumpReLU, and say what that changes")
    add_model_options(parser)
    add_text_options(parser)
    option = parser.add_argument
    option("--output", type=Path, required=True, metavar="DIR", help="directory for the converted transcoder")
    option("--format", choices=("native", "circuit-tracer"), default="native", help="of its files (default: native)")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, print, save."""
    from open_clt.analysis.conversion import convert_transcoder
    from open_clt.models.checkpoint import save_transcoder
    from open_clt.models.circuit_tracer import save_circuit_tracer

    clt = load(arguments)
    record = convert_transcoder(clt.language_model, clt.transcoder, read_contexts(arguments, clt.language_model))
    print(record.summary())
    if arguments.format == "native":
        save_transcoder(record.transcoder, arguments.output)
    else:
        save_circuit_tracer(record.transcoder, arguments.output)
    print(f"written: {arguments.output}")
    return 0

"""``open-clt convert``: a transcoder with thresholds in place of ranks, as other tools read it.

TopK and BatchTopK become JumpReLU. Thresholds are fitted to text, and both transcoders measured on other text. What has
thresholds already, or needs none, needs no text either: ``--unit-decoders`` moves decoder norms into encoders and
thresholds, so that an activation is the norm of what its feature writes; ``--format circuit-tracer`` writes the weights
in that tool's layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_text_options, read_contexts
from open_clt.commands.options import AddParser, add_model_options, load
from open_clt.config import BatchTopKConfig, TopKConfig

if TYPE_CHECKING:
    from open_clt.transcoders.transcoder import Transcoder


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("convert", help="turn TopK or BatchTopK into JumpReLU, and say what that changes")
    add_model_options(parser)
    add_text_options(parser)
    option = parser.add_argument
    option("--output", type=Path, required=True, metavar="DIR", help="directory for the converted transcoder")
    option("--unit-decoders", action="store_true", help="scale features so that a unit of each writes a norm of 1")
    option("--format", choices=("native", "circuit-tracer"), default="native", help="of its files (default: native)")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, print, save."""
    from open_clt.evaluation.conversion import convert_transcoder
    from open_clt.transcoders.formats.circuit_tracer import save_circuit_tracer
    from open_clt.transcoders.formats.native import save_transcoder

    clt = load(arguments)
    converted, native = clt.transcoder, arguments.format == "native"
    by_rank = isinstance(converted.config.nonlinearity, TopKConfig | BatchTopKConfig)
    if by_rank or (native and not arguments.unit_decoders):
        record = convert_transcoder(clt.language_model, converted, read_contexts(arguments, clt.language_model))
        print(record.summary())
        converted = record.transcoder
    if arguments.unit_decoders:
        converted = _with_unit_decoders(converted)
    if native:
        save_transcoder(converted, arguments.output)
    else:
        save_circuit_tracer(converted, arguments.output)
    print(f"written: {arguments.output}")
    return 0


def _with_unit_decoders(transcoder: Transcoder) -> Transcoder:
    folded = transcoder.folded()
    norms = folded.decoder_norms()
    print(f"decoder norms  {norms.min():.3g} to {norms.max():.3g} -> 1; what features write stays the same")
    return folded.with_unit_decoders()

"""The command ``open-clt convert``: change the nonlinearity, the decoder norms or the file format of a transcoder.

TopK and BatchTopK become JumpReLU: thresholds are fitted to one part of a text, and both transcoders are measured on
the other part. ReLU and JumpReLU transcoders need no text. ``--unit-decoders`` moves decoder norms into encoders and
thresholds, so that an activation equals the norm of what its feature writes. ``--format circuit-tracer`` writes the
weights in the layout of circuit-tracer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_text_options, read_contexts
from open_clt.commands.options import AddParser, add_command, add_model_options, load
from open_clt.config import BatchTopKConfig, TopKConfig
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.transcoders.transcoder import Transcoder


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    summary = "Convert a transcoder from TopK or BatchTopK to JumpReLU, or to the files of circuit-tracer."
    parser = add_command(add_parser, "convert", summary)
    add_model_options(parser)
    add_text_options(parser)
    option = parser.add_argument
    option("--output", type=Path, required=True, metavar="DIR", help="Directory for the converted transcoder.")
    option("--unit-decoders", action="store_true", help="Scale every feature so that its decoder norm is 1.")
    option(
        "--format",
        choices=("native", "circuit-tracer"),
        default="native",
        help="File format of the converted transcoder (default: native).",
    )
    option(
        "--overwrite",
        action="store_true",
        help="Replace a transcoder in the output directory; files that OpenCLT did not write stay.",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, then convert and save."""
    from open_clt.files import results

    with results(arguments.output):
        _check_output(arguments)
        _convert(arguments)
    return 0


def _check_output(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if the output directory holds other files, or a transcoder that must not be replaced."""
    from open_clt.transcoders.formats import circuit_tracer, native
    from open_clt.transcoders.formats.load import layout_of

    output: Path = arguments.output
    (native if arguments.format == "native" else circuit_tracer).check_place(output)
    layout = layout_of(output)
    if layout is not None and layout.key != arguments.format:
        raise ConfigError(f"{output} holds a transcoder in another file format; give another output directory.")
    if layout is not None and not arguments.overwrite:
        raise ConfigError(
            f"{output} holds a transcoder; replace it with --overwrite, or give another output directory."
        )


def _convert(arguments: argparse.Namespace) -> None:
    """Convert the transcoder, print what changed, and save it."""
    from open_clt.evaluation.conversion import convert_transcoder
    from open_clt.transcoders.formats.circuit_tracer import save_circuit_tracer
    from open_clt.transcoders.formats.native import save_transcoder

    clt = load(arguments)
    converted, native = clt.transcoder, arguments.format == "native"
    has_ranks = isinstance(converted.config.nonlinearity, TopKConfig | BatchTopKConfig)
    if has_ranks or (native and not arguments.unit_decoders):
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


def _with_unit_decoders(transcoder: Transcoder) -> Transcoder:
    """Fold the standardisation, scale decoder norms to 1, and print the norms before."""
    folded = transcoder.folded()
    norms = folded.decoder_norms()
    print(f"decoder norms  {norms.min():.3g} to {norms.max():.3g} -> 1; what the features write stays the same")
    return folded.with_unit_decoders()

"""The command ``open-clt convert``: change the nonlinearity, the decoder norms or the layout of a transcoder.

TopK and BatchTopK become JumpReLU, unless ``--keep-nonlinearity`` is given or the layout has one ``k`` per layer:
thresholds are fitted to one part of a text, or of a dataset of activations, and both transcoders are measured on the
other part. Nothing else needs a text or a language model. ``--unit-decoders`` moves decoder norms into encoders and
thresholds, so that an activation equals the norm of what its feature writes. ``--to`` names the layout of the files
that are written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_data_option, add_text_options, read_contexts, read_data
from open_clt.commands.options import AddParser, add_command, add_model_options, load, own_source, transcoder_source
from open_clt.config import BatchTopKConfig, ThresholdConfig, TopKConfig
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
    from open_clt.transcoders.formats.load import Layout, Writer
    from open_clt.transcoders.transcoder import Transcoder

_LAYOUTS = ("native", "circuit-tracer", "circuit-tracer-layers", "saelens")
"""The layouts that can be written; a test holds them against the table, which is not imported for ``--help``."""
_WITH_RANKS = "circuit-tracer-layers"
"""The layout of another tool that holds TopK."""


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    summary = "Convert a transcoder from TopK or BatchTopK to JumpReLU, or to the layout of another tool."
    parser = add_command(add_parser, "convert", summary)
    add_model_options(parser)
    add_text_options(parser)
    add_data_option(parser)
    option = parser.add_argument
    option("--output", "-o", type=Path, required=True, metavar="DIR", help="Directory for the converted transcoder.")
    option(
        "--from",
        dest="source_layout",
        metavar="LAYOUT",
        help="Layout that the transcoder must have, such as gemma-scope-2 (default: any that is known).",
    )
    option(
        "--to",
        "--format",
        dest="layout",
        choices=_LAYOUTS,
        default="native",
        help="Layout of the converted transcoder (default: native).",
    )
    option(
        "--scale-factor",
        type=float,
        metavar="FACTOR",
        help="Factor on the fitted thresholds of all layers (default: one factor per layer, which keeps the number of "
        "active features).",
    )
    option(
        "--default-threshold",
        type=float,
        metavar="THRESHOLD",
        help="Threshold of features that are never active on the tokens that thresholds are fitted to (default: one "
        "above all of their pre-activations).",
    )
    option("--unit-decoders", action="store_true", help="Scale every feature so that its decoder norm is 1.")
    option("--keep-nonlinearity", action="store_true", help="Write TopK and BatchTopK as they are, if the layout can.")
    option(
        "--overwrite",
        action="store_true",
        help="Replace a transcoder in the output directory; files that OpenCLT did not write stay.",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, then convert and save."""
    from open_clt.files import results

    _thresholds(arguments)  # a mistake in them is found here
    with results(arguments.output):
        _check_output(arguments)
        _convert(arguments)
    return 0


def _layout(key: str) -> Layout:
    """The layout with this name; raises ConfigError if there is none."""
    from open_clt.transcoders.formats.load import LAYOUTS

    by_key = {layout.key: layout for layout in LAYOUTS}
    if key not in by_key:
        raise ConfigError(f"--from is {key!r}, which is not a layout; docs/layouts.md lists those that are known.")
    return by_key[key]


def _check_output(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if the output directory holds other files, or a transcoder that must not be replaced."""
    from open_clt.transcoders.formats.load import layout_of

    if arguments.source_layout is not None:
        _layout(arguments.source_layout)
    output: Path = arguments.output
    writer = _layout(arguments.layout).writer
    assert writer is not None
    writer.check_place(output)
    layout = layout_of(output)
    if layout is not None and layout.key != arguments.layout:
        raise ConfigError(f"{output} holds a transcoder in another layout; give another output directory.")
    if layout is not None and not arguments.overwrite:
        raise ConfigError(
            f"{output} holds a transcoder; replace it with --overwrite, or give another output directory."
        )


def _convert(arguments: argparse.Namespace) -> None:
    """Convert the transcoder, save it, and print what changed."""
    writer = _layout(arguments.layout).writer
    assert writer is not None
    changes: list[str] = []
    converted = _with_thresholds(arguments, writer, changes)
    if arguments.unit_decoders:
        converted = _with_unit_decoders(converted, changes)
    writer.save(converted, arguments.output)
    print("\n".join([*changes, f"written: {arguments.output}"]))


def _thresholds(arguments: argparse.Namespace) -> ThresholdConfig:
    """The settings of the thresholds; raises ConfigError for an illegal one."""
    return ThresholdConfig(scale_factor=arguments.scale_factor, default_threshold=arguments.default_threshold)


def _with_thresholds(arguments: argparse.Namespace, writer: Writer, changes: list[str]) -> Transcoder:
    """The transcoder, after TopK and BatchTopK have become JumpReLU where they must; ``changes`` gets the effect."""
    from open_clt.transcoders.formats.load import load_transcoder, open_transcoder
    from open_clt.transcoders.make import OwnCode
    from open_clt.transcoders.neurons.source import is_neurons, not_stored

    if is_neurons(arguments.transcoder):
        raise not_stored("converted")
    source, clt = own_source(arguments), None
    if source is None and arguments.data is not None:  # no language model is loaded
        source = transcoder_source(arguments.model)
    if source is None:  # the transcoder that ships for the model
        clt = load(arguments)
        key, config = "native", clt.transcoder.config
    else:
        opened = open_transcoder(source, code=OwnCode(trust_code=arguments.trust_code))
        key, config = opened.layout.key, opened.content.config
    if arguments.source_layout not in (None, key):
        raise ConfigError(f"The transcoder has the layout {key}, but --from is {arguments.source_layout!r}.")
    if writer.check_config is not None:
        writer.check_config(config)
    has_ranks = isinstance(config.nonlinearity, TopKConfig | BatchTopKConfig)
    if has_ranks and not (arguments.keep_nonlinearity or arguments.layout == _WITH_RANKS):
        return _fitted(arguments, source, clt, changes)
    _check_nothing_is_fitted(arguments)
    if arguments.layout == key and not arguments.unit_decoders:
        raise ConfigError(
            f"The transcoder has the layout {key} already, and its nonlinearity stays; choose another layout with "
            "--to, or --unit-decoders."
        )
    if source is None:
        return load(arguments).transcoder if clt is None else clt.transcoder
    return load_transcoder(source, device=arguments.device, trust_code=arguments.trust_code)


def _fitted(
    arguments: argparse.Namespace,
    source: str | Path | None,
    clt: OpenCrossLayerTranscoder | None,
    changes: list[str],
) -> Transcoder:
    """The transcoder with thresholds that are fitted to a text or to a dataset; ``changes`` gets the effect."""
    from open_clt.evaluation.conversion import convert_on_dataset, convert_transcoder
    from open_clt.transcoders.formats.load import load_transcoder

    thresholds = _thresholds(arguments)
    if arguments.data is not None:
        assert source is not None
        dataset = read_data(arguments)
        transcoder = load_transcoder(source, device=arguments.device, trust_code=arguments.trust_code)
        record = convert_on_dataset(transcoder, dataset, thresholds=thresholds, max_tokens=arguments.max_tokens)
    else:
        clt = clt or load(arguments)
        contexts = read_contexts(arguments, clt.language_model)
        record = convert_transcoder(clt.language_model, clt.transcoder, contexts, thresholds=thresholds)
    changes.append(record.summary())
    return record.transcoder


def _check_nothing_is_fitted(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if an option is given that only thresholds need, although the nonlinearity stays."""
    names = ("scale_factor", "default_threshold")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
    options = [*arguments.measuring, *given]
    if options:
        raise ConfigError(
            f"{options[-1]} is given, but the nonlinearity stays, so no thresholds are fitted; remove this option."
        )


def _with_unit_decoders(transcoder: Transcoder, changes: list[str]) -> Transcoder:
    """Fold the standardisation, and scale decoder norms to 1; ``changes`` receives the norms before."""
    folded = transcoder.folded()
    unit, norms = folded.with_unit_decoders(), folded.decoder_norms()
    changes.append(
        f"decoder norms  {norms.min():.3g} to {norms.max():.3g} -> 1; what the features write stays the same"
    )
    return unit

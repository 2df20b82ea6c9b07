"""The command ``open-clt verify``: measure the claims of a saved circuit again, on any model and transcoder.

The exit status is 0 if all claims hold, and 1 if one fails. ``open-clt attribute --circuit FILE`` writes such a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_context_option, add_source_options
from open_clt.commands.options import (
    DEVICE_HELP,
    MODEL_HELP,
    AddParser,
    add_command,
    add_trust_option,
    integer,
    load,
    own_source,
    seed,
)

if TYPE_CHECKING:
    from open_clt.circuits.circuit import Circuit
    from open_clt.circuits.encoded_text import EncodedText
    from open_clt.embedded.held_out import HeldOutText
    from open_clt.graphs.graph import AttributionGraph
    from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder

NAMING_TOKENS, CLAIM_TOKENS = 160_000, 20_000
"""Default number of tokens of the text in which names are found, and of the text on which claims are measured."""
NAMING_SEED, MAKING_SEED, VERIFYING_SEED = 0, 1000, 2000
"""Seeds that select the contexts for naming, for the claims of a new circuit, and for their verification."""
_TEXT = (
    "Fresh text for the claims: a text, .jsonl or .parquet file, or a data set on the Hugging Face hub (default: "
    "generated sentences, for the embedded model only)."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(
        add_parser, "verify", "Measure the claims of a saved circuit again; the exit status is 1 if one fails."
    )
    parser.add_argument("circuit", type=Path, metavar="FILE", help="Circuit that `open-clt attribute --circuit` wrote.")
    option = parser.add_argument
    option("--model", default=None, help=f"{MODEL_HELP} (default: the circuit's).")
    option("--transcoder", default=None, metavar="SOURCE", help="Transcoder, in any version (default: the circuit's).")
    option("--device", default="cpu", help=f"{DEVICE_HELP} (default: cpu).")
    add_trust_option(parser)
    add_source_options(option, text=_TEXT)
    add_context_option(option)
    option(
        "--max-tokens",
        type=integer(least=4),
        default=None,
        help=f"Number of tokens of the fresh text (default: {CLAIM_TOKENS}, or {NAMING_TOKENS} for a transcoder in "
        "which the supernodes must be found again).",
    )
    option("--seed", type=seed, default=VERIFYING_SEED, help=f"Seed of the fresh text (default: {VERIFYING_SEED}).")
    option("--json", action="store_true", help="Print the report as JSON.")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict on each claim, and return 1 if one fails."""
    from open_clt.circuits.circuit import Circuit
    from open_clt.circuits.verify import verify
    from open_clt.transcoders.formats.fingerprint import fingerprint

    circuit = Circuit.load(arguments.circuit)
    if arguments.transcoder is None and arguments.model in (None, circuit.model):
        arguments.transcoder = circuit.transcoder
    arguments.model = arguments.model or circuit.model
    clt = load(arguments)
    again = fingerprint(clt.transcoder) != circuit.transcoder_hash
    tokens = arguments.max_tokens or (NAMING_TOKENS if again else CLAIM_TOKENS)
    text = encoded_text(arguments, clt, tokens=tokens, seed=arguments.seed)
    report = verify(circuit, clt.language_model, clt.transcoder, text)
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        if report.found_again:
            print("The transcoder is not the circuit's, so the supernodes were found again.")
        print(report.table())
    if report.passed:
        return 0
    first, count = report.failed[0], len(report.failed)
    value = "cannot be measured" if first.measured is None else f"is {first.measured:.3f}"
    print(
        f"open-clt: {count} of {len(report.verdicts)} claims fail; the first is {first.claim.kind!r} of "
        f"{first.claim.supernode!r}: it {value} and needs {first.claim.needed:g} ({first.note}).",
        file=sys.stderr,
    )
    return 1


def encoded_text(
    arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, *, tokens: int, seed: int
) -> EncodedText:
    """The text that the options name, with its active features."""
    from open_clt.circuits.encoded_text import EncodedText

    contexts = _held_out(arguments, tokens, seed).contexts(clt.language_model)
    return EncodedText(clt.language_model, clt.transcoder, contexts)


def _held_out(arguments: argparse.Namespace, tokens: int, seed: int) -> HeldOutText:
    from open_clt.embedded.held_out import HeldOutText

    return HeldOutText(
        source=arguments.text,
        column=arguments.column,
        split=arguments.split,
        max_tokens=tokens,
        context_length=getattr(arguments, "context_length", None),
        seed=seed,
    )


def write_circuit(
    arguments: argparse.Namespace, clt: OpenCrossLayerTranscoder, graph: AttributionGraph, path: Path
) -> Circuit:
    """Make the circuit of a graph, with the texts that the options name, write it, and return it."""
    from open_clt.circuits.verify import make_circuit

    naming = encoded_text(arguments, clt, tokens=NAMING_TOKENS, seed=NAMING_SEED)
    fresh = encoded_text(arguments, clt, tokens=CLAIM_TOKENS, seed=MAKING_SEED)
    source = own_source(arguments)
    circuit = make_circuit(
        clt.language_model,
        clt.transcoder,
        graph,
        naming,
        fresh,
        described=_held_out(arguments, NAMING_TOKENS, NAMING_SEED).description,
        transcoder_source=None if source is None else str(source),
    )
    circuit.save(path)
    return circuit

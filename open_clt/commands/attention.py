"""The command ``open-clt attention``: explain why an attention head looked from one position at another.

The score of the head is a table of pairs of sources: features, errors, tokens, positions and biases on the side of the
query, and the same on the side of the key. Its entries add up to the score. The command prints the largest entries.
With ``--versus`` it explains the difference between the scores of two keys.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from open_clt.commands.options import (
    AddParser,
    add_command,
    add_labels_option,
    add_model_options,
    integer,
    load,
    read_labels_of,
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "attention", "Explain why an attention head looked from one position at another.")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", "-p", required=True, help="Text that the model reads.")
    option("--layer", type=integer(least=0), required=True, help="Layer of the head.")
    option("--head", type=integer(least=0), required=True, help="Number of the head in its layer.")
    from_end = "negative values count from the end"
    option("--query", type=int, default=-1, help=f"Position that the head looks from; {from_end} (default: -1).")
    option("--key", type=int, required=True, help=f"Position that the head looks at; {from_end}.")
    option("--versus", type=int, help="Another position; explain why the head prefers --key to it.")
    option("--top", type=integer(least=1), default=10, help="Number of pairs to list (default: 10).")
    option(
        "--constants",
        action="store_true",
        help="List pairs with biases and positional embeddings too, which are the same for every text.",
    )
    add_labels_option(option)
    option("--json", type=Path, metavar="FILE", help="JSON file for the explanation.")
    option("--figure", type=Path, metavar="FILE", help="Heat map of the largest pairs, a .png, .svg or .pdf file.")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the paths, explain the head, print the summary, and write the files that are asked for."""
    from open_clt import files

    if arguments.json is not None:
        files.check_file(arguments.json)
    if arguments.figure is not None:
        from open_clt.visualization.style import check_save_path

        check_save_path(arguments.figure)
    labels = read_labels_of(arguments)
    clt = load(arguments)

    from open_clt.attribution.qk import explain_attention

    explanation = explain_attention(
        clt.language_model,
        clt.transcoder,
        arguments.prompt,
        layer=arguments.layer,
        head=arguments.head,
        query=arguments.query,
        key=arguments.key,
        versus=arguments.versus,
    )
    print(explanation.summary(arguments.top, constants=arguments.constants, labels=labels))
    if arguments.json is not None:
        content = explanation.to_json(arguments.top, constants=arguments.constants)
        print(f"json: {files.write_json(arguments.json, content)}")
    if arguments.figure is not None:
        from open_clt.visualization.graph.attention import visualize_attention

        visualize_attention(explanation, labels=labels, constants=arguments.constants, save_path=arguments.figure)
        print(f"figure: {arguments.figure}")
    return 0

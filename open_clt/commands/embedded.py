"""The command ``open-clt embedded``: check the language model that ships with the package."""

from __future__ import annotations

import argparse

from open_clt.commands.options import AddParser, add_command, integer


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    embedded = add_command(add_parser, "embedded", "Check the language model that ships with the package.")
    actions = embedded.add_subparsers(title="actions", required=True, metavar="ACTION")
    summary = "Measure the accuracy of the embedded model on every task; the exit status is 1 if one is too low."
    evaluate = add_command(actions.add_parser, "evaluate", summary)
    evaluate.add_argument(
        "--limit",
        type=integer(least=1),
        default=None,
        help="Largest number of prompts of each task (default: all).",
    )
    evaluate.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the accuracy of the embedded model on every task; return 1 if an accuracy is below its bar."""
    from open_clt.embedded.evaluation import evaluate, format_table
    from open_clt.language.language_model import load_language_model
    from open_clt.lean_imports import lean_imports

    with lean_imports():
        model = load_language_model("embedded")
    rows = evaluate(model.next_tokens, lambda text: model.token_ids([text])[0], limit=arguments.limit)
    print(format_table(rows))
    return 0 if all(row.passed for row in rows) else 1

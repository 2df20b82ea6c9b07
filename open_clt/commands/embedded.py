"""``open-clt embedded``: the language model that ships with the package."""

from __future__ import annotations

import argparse

from open_clt.commands.options import AddParser


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    embedded = add_parser("embedded", help="the language model that ships with the package")
    actions = embedded.add_subparsers(title="actions", required=True, metavar="ACTION")
    evaluate = actions.add_parser("evaluate", help="ask it everything it should know; status 1 if a bar is missed")
    evaluate.add_argument("--limit", type=int, default=None, help="at most this many prompts of each task")
    evaluate.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the evaluation table of the embedded model; status 1 if a row is below its bar."""
    from open_clt.embedded.evaluation import evaluate, format_table
    from open_clt.language.language_model import load_language_model

    model = load_language_model("embedded")
    rows = evaluate(model.next_tokens, lambda text: model.token_ids([text])[0], limit=arguments.limit)
    print(format_table(rows))
    return 0 if all(row.passed for row in rows) else 1

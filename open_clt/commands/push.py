"""The command ``open-clt push``: upload a saved transcoder to the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from open_clt.commands.options import AddParser, add_command, add_trust_option


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "push", "Upload a transcoder to the Hugging Face hub, with a model card.")
    option = parser.add_argument
    option("directory", type=Path, metavar="DIR", help="Directory of the transcoder, in any layout that can be read.")
    option("repo", metavar="ORG/NAME", help="Repository on the hub, which is created unless it exists.")
    option("--dry-run", action="store_true", help="Print the model card and the files, and send nothing.")
    option("--private", action="store_true", help="Create a private repository; refuse one that is public.")
    option("--revision", default="main", metavar="BRANCH", help="Branch to write to (default: main).")
    option("--license", metavar="ID", help="License that the model card states, such as mit or apache-2.0.")
    add_trust_option(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the card, then print it or push."""
    from open_clt.publishing.card import CARD
    from open_clt.publishing.push import publication, send
    from open_clt.transcoders.formats.info import readable

    pushed = publication(
        arguments.directory,
        arguments.repo,
        revision=arguments.revision,
        license=arguments.license,
        trust_code=arguments.trust_code,
    )
    sent = None if arguments.dry_run else send(pushed, private=arguments.private)
    if sent is None:
        print(pushed.card)
    width = max(map(len, pushed.sizes))
    for name, size in pushed.sizes.items():
        is_kept = name == CARD and sent is not None and sent.card_is_kept
        note = ", without the paths of this machine that it names" if name in pushed.changed else ""
        print(f"{name:<{width}}  {'kept as it is on the hub' if is_kept else readable(size) + note}")
    print("nothing was sent" if sent is None else f"pushed: {sent.address}")
    return 0

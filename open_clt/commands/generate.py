"""The command ``open-clt generate``: continue a prompt with the original model and with the replacement model.

By default the command prints both continuations and how far the predictions of the two models differ. If features are
changed, it also prints the continuation of the original model with these interventions. With ``--replacement`` it
prints only the text of the replacement model, with the interventions.
"""

from __future__ import annotations

import argparse

from open_clt.commands.options import (
    AddParser,
    add_chat_option,
    add_command,
    add_intervention_options,
    add_model_options,
    corrected,
    load,
    read_interventions,
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "generate", "Continue a prompt with the original and with the replacement model.")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", "-p", required=True, help="Text to continue.")
    add_chat_option(option)
    option("--replacement", action="store_true", help="Print only the text of the replacement model.")
    option("--max-new-tokens", type=int, default=30, help="Largest number of tokens to generate (default: 30).")
    option(
        "--temperature",
        type=float,
        default=0.0,
        help="Temperature of the sampling; 0 always takes the likeliest token (default: 0).",
    )
    option("--seed", type=int, default=0, help="Seed of the sampling (default: 0).")
    add_intervention_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the continuations."""
    from open_clt.config import SamplingConfig
    from open_clt.replacement.interventions.intervene import generate_patched

    interventions = read_interventions(arguments)
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    clt = load(arguments)
    replacement, prompt, chat = clt.replacement_model(), arguments.prompt, arguments.chat
    if arguments.replacement:
        print(generate_patched(replacement, prompt, interventions, sampling=sampling, chat=chat).text)
        return 0
    lines = [replacement.compare(prompt, sampling, chat=chat).summary()]
    if interventions:
        generation = generate_patched(corrected(clt), prompt, interventions, sampling=sampling, chat=chat)
        lines.append(f"changed        {generation.text!r}")
    print("\n".join(lines))
    return 0

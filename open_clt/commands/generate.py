"""``open-clt generate``: a prompt continued by the model, by its replacement, and with features changed.

Without ``--replacement`` the continuations stand one below the other, with numbers of how far they are apart, and a
line for the model with the interventions. With it, only the replacement's text is printed, interventions included.
"""

from __future__ import annotations

import argparse

from open_clt.commands.options import AddParser, add_intervention_options, add_model_options, load, read_interventions


def add_to(add_parser: AddParser) -> None:
    """Add the command."""
    parser = add_parser("generate", help="continue a prompt, with the MLPs and with the transcoder")
    add_model_options(parser)
    option = parser.add_argument
    option("--prompt", required=True, help="the text to start from")
    option("--replacement", action="store_true", help="print what the replacement model writes, and nothing else")
    option("--max-new-tokens", type=int, default=30, help="tokens to add (default: 30)")
    option("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    option("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    add_intervention_options(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the continuations that were asked for."""
    from open_clt.commands.options import corrected
    from open_clt.config import SamplingConfig
    from open_clt.replacement.interventions.intervene import generate_patched

    interventions = read_interventions(arguments)
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature, seed=arguments.seed
    )
    clt = load(arguments)
    replacement = clt.replacement_model()
    if arguments.replacement:
        print(generate_patched(replacement, arguments.prompt, interventions, sampling=sampling).text)
        return 0
    print(replacement.compare(arguments.prompt, sampling).summary())
    if interventions:
        written = generate_patched(corrected(clt), arguments.prompt, interventions, sampling=sampling)
        print(f"changed        {written.text!r}")
    return 0

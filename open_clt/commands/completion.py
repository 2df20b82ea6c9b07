"""The command ``open-clt completion``: a script that lets a shell complete commands and options.

    eval "$(open-clt completion bash)"                                       in ~/.bashrc
    eval "$(open-clt completion zsh)"                                        in ~/.zshrc
    open-clt completion fish > ~/.config/fish/completions/open-clt.fish      once

The script holds the names of this version; values of options are completed as files.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence

from open_clt.commands.options import AddParser, add_command

SHELLS = ("bash", "zsh", "fish")
_BASH = """_open_clt() {{
  local names
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) names="{commands}" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && names="{commands}"
  COMPREPLY=($(compgen -W "$names" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _open_clt open-clt
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def add_to(add_parser: AddParser) -> None:
    """Add the command and its option."""
    parser = add_command(add_parser, "completion", "Print a script that lets a shell complete commands and options.")
    parser.add_argument("shell", choices=SHELLS, help="Shell that reads the script.")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    options = options_of(arguments.program)
    script = _fish(options) if arguments.shell == "fish" else _bash(options)
    print(f"{_ZSH if arguments.shell == 'zsh' else ''}{script}", end="")
    return 0


def options_of(program: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The options of each command."""
    (choices,) = (action.choices for action in program._actions if isinstance(action.choices, dict))  # pyright: ignore[reportPrivateUsage]
    return {name: sorted(_options(name, parser)) for name, parser in choices.items()}


def _options(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    if name == "train":  # Lightning's parser has the options
        from open_clt.training.flags.stored_help import stored_help

        yield from {"--config", "--help", "--output", *re.findall(r"(?m)^  (--[\w.]+)", stored_help() or "")}
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        yield from (option for option in action.option_strings if option.startswith("--"))


def _bash(options: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(f'    {name}) names="{" ".join(flags)}" ;;' for name, flags in options.items())
    return _BASH.format(cases=cases, commands=" ".join(options))


def _fish(options: Mapping[str, Sequence[str]]) -> str:
    lines = [f"complete -c open-clt -n __fish_use_subcommand -f -a '{' '.join(options)}'"]
    for name, flags in options.items():
        lines += [f"complete -c open-clt -n '__fish_seen_subcommand_from {name}' -l '{flag[2:]}'" for flag in flags]
    return "\n".join(lines) + "\n"

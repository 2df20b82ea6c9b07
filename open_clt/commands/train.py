"""``open-clt train``: from settings to a transcoder, with its curves, its numbers, and its evaluation on held-out text.

Its output directory holds the folded transcoder (``config.json``, ``transcoder.safetensors``), the settings
(``config.yaml``), ``metrics.csv``, ``curves.png``, what ``open-clt evaluate`` writes, and ``checkpoints/``.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.evaluation.report import Report
    from open_clt.training.flags.command_line import CommandResult


def add_to(add_parser: AddParser) -> None:
    """Add the command; what follows its name is for Lightning's own parser, so nothing looks like a flag here."""
    parser = add_parser("train", help="train a transcoder (--config FILE, or any setting as a flag)", add_help=False)
    parser.prefix_chars = "\0"
    parser.add_argument("settings", nargs="*")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; write the transcoder, its settings, metrics, curves and evaluation; print what came out."""
    from open_clt.training.flags.command_line import train_command

    trained = train_command(arguments.settings, keep_memory=True)
    if not trained.training.first:
        return 0  # of several processes, the first one prints and writes the results
    print(_summary(trained))
    _draw(trained)
    _evaluate(trained)
    print(f"written to {trained.output}: {', '.join(sorted(path.name for path in trained.output.iterdir()))}")
    return 0


def _summary(trained: CommandResult) -> str:
    result, cost = trained.training, trained.training.harvest
    stopped = "" if result.finished else ", stopped before its end"
    before = cost.before / (cost.before + cost.total) if cost.total else 1.0
    return (
        f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} s{stopped}\n"
        f"harvest: {cost.before:.1f} s before the first step ({before:.1%} of all time), {cost.meanwhile:.1f} s beside "
        f"the steps; {cost.share:.1%} of the steps' time was waiting for it"
    )


def _draw(trained: CommandResult) -> None:
    from open_clt.visualization.figures import visualize_training_curves

    if trained.training.curves.step:
        visualize_training_curves(trained.training.curves, save_path=trained.output / "curves.png")


def _evaluate(trained: CommandResult) -> None:
    """What ``open-clt evaluate`` measures; where that cannot be, how well the transcoder reconstructs, and why."""
    from open_clt.evaluation.report import comparison_table
    from open_clt.evaluation.report_file import save_reconstruction, save_report
    from open_clt.visualization.report_figures import visualize_report

    output = trained.output
    try:
        found = _report(trained)
    except ConfigError as error:
        numbers = trained.training.summary()["held_out"] or {"dead_share": trained.training.dead_share}
        save_reconstruction(numbers, output, reason=str(error))
        print(", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if isinstance(value, float)))
        print(f"predictions were not measured. {error}")
        return
    print(comparison_table([found]))
    save_report(found, output)
    visualize_report(found, save_path=output / "evaluation.png")


def _report(trained: CommandResult) -> Report:
    """The report on the held-out contexts; raises ConfigError if there is nothing that the transcoder can stand for."""
    from open_clt.evaluation.report import report
    from open_clt.replacement.model import ReplacementModel

    model, contexts = trained.language_model, trained.training.held_out
    if model is None:
        raise ConfigError("It was trained on activations of your own, without a language model to stand in.")
    if contexts is None:
        raise ConfigError("No contexts were held out (data.texts.held_out_contexts is 0).")
    return report(
        ReplacementModel(model, trained.training.transcoder.to(model.device)),
        contexts,
        name=trained.output.name,
        text="what training held out",
        prompts=trained.prompts,
        max_feature_nodes=trained.report.max_feature_nodes,
    )

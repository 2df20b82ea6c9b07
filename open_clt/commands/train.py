"""The command ``open-clt train``: train a transcoder, draw its training curves, and evaluate it on held-out text.

The output directory contains the folded transcoder (``config.json``, ``transcoder.safetensors``), the settings
(``config.yaml``), ``metrics.csv``, ``curves.png``, the files of ``open-clt evaluate``, and ``checkpoints/``.
"""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser
from open_clt.errors import ConfigError
from open_clt.program import Stopped

if TYPE_CHECKING:
    from open_clt.evaluation.report import Report
    from open_clt.training.flags.command_line import CommandResult

_CURVES, _REPORT_FIGURE = "curves.png", "evaluation.png"


def add_to(add_parser: AddParser) -> None:
    """Add the command; Lightning's own parser reads its flags, so this parser passes them all on as plain words."""
    parser = add_parser(
        "train",
        help="Train a transcoder; every setting is a flag or a line in the YAML file of --config.",
        add_help=False,
    )
    parser.prefix_chars = "\0"
    parser.add_argument("settings", nargs="*")
    parser.set_defaults(command=run, trust_code=True)  # settings of training are the user's own


def run(arguments: argparse.Namespace) -> int:
    """Train and evaluate a transcoder; write it with its settings, metrics and curves; print a summary.

    A dry run only prints the size of the run, and the time that it will take.
    """
    if arguments.settings in (["--help"], ["-h"]):
        from open_clt.training.flags.stored_help import stored_help

        if (text := stored_help()) is not None:
            print(text, end="")
            return 0
    from open_clt.evaluation.report_file import REPORT_FILES
    from open_clt.training.flags.command_line import DRY_RUN, forecast_command, train_command

    if DRY_RUN in arguments.settings:
        if (expected := forecast_command(arguments.settings)) is not None:
            print(f"{expected}\nThis was a dry run: nothing was written.")
        return 0
    train_command(
        arguments.settings, keep_memory=True, also_writes=(_CURVES, *REPORT_FILES, _REPORT_FIGURE), then=_finish
    )
    return 0


def _finish(trained: CommandResult) -> None:
    """Print and write the results; with several processes, only the first one does."""
    from open_clt.training.output import how_to_resume

    if trained.training.interrupted:
        raise Stopped(signal.SIGINT, how_to_resume(trained.output), silent=not trained.training.first)
    if trained.training.first:
        print(_summary(trained))
        _draw(trained)
        _evaluate(trained)
        names = sorted(path.name for path in trained.output.iterdir() if not path.name.startswith("."))
        print(f"written to {trained.output}: {', '.join(names)}")


def _summary(trained: CommandResult) -> str:
    result, harvest = trained.training, trained.training.harvest
    stopped = "" if result.finished else ", stopped early"
    share_before = harvest.before / (harvest.before + harvest.total) if harvest.total else 1.0
    return (
        f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} s{stopped}\n"
        f"harvest of activations: {harvest.before:.1f} s before the first step ({share_before:.1%} of all time), "
        f"{harvest.meanwhile:.1f} s during the steps; the steps waited {harvest.share:.1%} of their time for it"
    )


def _draw(trained: CommandResult) -> None:
    from open_clt.visualization.figures import visualize_training_curves
    from open_clt.visualization.titles import title_of

    result = trained.training
    if result.curves.step:
        model = result.transcoder.config.language_model or ""
        title = title_of("Training of a transcoder", text=f"{result.tokens:,} tokens", model=model)
        visualize_training_curves(result.curves, title=title, save_path=trained.output / _CURVES)


def _evaluate(trained: CommandResult) -> None:
    """Write the report of ``open-clt evaluate``; if there can be none, write reconstruction metrics and the reason."""
    from open_clt.evaluation.report import comparison_table
    from open_clt.evaluation.report_file import save_reconstruction, save_report
    from open_clt.visualization.report_figures import visualize_report

    output = trained.output
    try:
        report = _report(trained)
    except ConfigError as error:
        metrics = trained.training.summary()["held_out"] or {"dead_share": trained.training.dead_share}
        save_reconstruction(metrics, output, reason=str(error))
        print(", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, float)))
        print(f"Predictions were not measured. {error}")
        return
    print(comparison_table([report]))
    save_report(report, output)
    visualize_report(report, save_path=output / _REPORT_FIGURE)


def _report(trained: CommandResult) -> Report:
    """Measure the transcoder on the held-out contexts; raise ConfigError if it cannot replace parts of a model."""
    from open_clt.evaluation.report import report
    from open_clt.replacement.model import ReplacementModel

    model, contexts = trained.language_model, trained.training.held_out
    if model is None:
        raise ConfigError(
            "The transcoder was trained on activations without a language model; measure it with `open-clt evaluate`."
        )
    if contexts is None:
        raise ConfigError(
            "data.texts.held_out_contexts is 0, so the transcoder cannot be measured on held-out contexts."
        )
    return report(
        ReplacementModel(model, trained.training.transcoder.to(model.device)),
        contexts,
        name=trained.output.name,
        text="held-out contexts of the training run",
        prompts=trained.prompts,
        max_feature_nodes=trained.report.max_feature_nodes,
    )

"""``open-clt train``: from settings to a transcoder, with its curves, its numbers, and its evaluation on held-out text.

Its output directory holds the folded transcoder (``config.json``, ``transcoder.safetensors``), the settings
(``config.yaml``), ``metrics.csv``, ``curves.png``, what ``open-clt evaluate`` writes, and ``checkpoints/``.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from open_clt.commands.options import AddParser
from open_clt.config import MLP_INPUT_HOOKS, MLP_OUTPUT_HOOK

if TYPE_CHECKING:
    from open_clt.training.command import TrainedRun


def add_to(add_parser: AddParser) -> None:
    """Add the command; what follows its name is for Lightning's own parser, so nothing looks like a flag here."""
    parser = add_parser("train", help="train a transcoder (--config FILE, or any setting as a flag)", add_help=False)
    parser.prefix_chars = "\0"
    parser.add_argument("settings", nargs="*")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; write the transcoder, its settings, metrics, curves and evaluation; print what came out."""
    from open_clt.training.command import train_command

    trained = train_command(arguments.settings)
    if not trained.first:
        return 0  # the first of several processes says and writes what there is
    print(_summary(trained))
    _draw(trained)
    _evaluate(trained)
    print(f"written to {trained.output}: {', '.join(sorted(path.name for path in trained.output.iterdir()))}")
    return 0


def _summary(trained: TrainedRun) -> str:
    record, cost = trained.record, trained.record.harvest
    stopped = "" if record.finished else ", stopped before its end"
    before = cost.before / (cost.before + cost.total) if cost.total else 1.0
    return (
        f"{record.steps} steps, {record.tokens:,} tokens, {record.seconds:.0f} s{stopped}\n"
        f"harvest: {cost.before:.1f} s before the first step ({before:.1%} of all time), {cost.meanwhile:.1f} s beside "
        f"the steps; {cost.share:.1%} of the steps' time was waiting for it"
    )


def _draw(trained: TrainedRun) -> None:
    from open_clt.visualization.figures import visualize_training_curves

    if trained.record.curves.step:
        visualize_training_curves(trained.record.curves, save_path=trained.output / "curves.png")


def _evaluate(trained: TrainedRun) -> None:
    """What ``open-clt evaluate`` measures, where the transcoder is one of MLPs; else how well it reconstructs."""
    from open_clt.analysis.report import comparison_table, report, save_report
    from open_clt.replacement.model import ReplacementModel
    from open_clt.visualization.report_figures import visualize_report

    config, output = trained.folded.config, trained.output
    model, contexts = trained.language_model, trained.held_out
    of_mlps = config.input_hook in MLP_INPUT_HOOKS and config.target_hook == MLP_OUTPUT_HOOK
    if model is None or contexts is None or not of_mlps:
        numbers = trained.record.summary()["held_out"] or {"dead_share": trained.record.dead_share}
        (output / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        print(", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if isinstance(value, float)))
        return
    found = report(ReplacementModel(model, trained.folded.to(model.device)), contexts, name=output.name)
    print(comparison_table([found]))
    save_report(found, output)
    visualize_report(found, save_path=output / "evaluation.png")

"""Calibration benchmark: does a graph know how far it can be trusted?

    python benchmarks/truth/calibration.py                      the embedded model and its transcoder
    python benchmarks/truth/calibration.py --store DIRECTORY    also write the calibration that is fitted on all tasks

Nodes and edges of graphs of the embedded tasks are ablated and cut (``open_clt/evaluation/trials.py``), in the language
model itself, with nothing frozen. A trial turns out as predicted if the answer's logit moves in the predicted direction
by between half and twice the predicted amount. Logistic regressions are fitted on five tasks and measured on five
others: probabilities against shares in ten bins (ECE), squared error (Brier), and the same of a constant probability,
the share of the fitted tasks. A second table fits on nine tasks and measures on the tenth. Prompts are held-out ones
that the model answers correctly; those of one template are one consensus. The last line is JSON; its ``ece`` is that of
nodes of a consensus.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from open_clt.attribution.attribute import attribute
from open_clt.embedded import templates
from open_clt.embedded.evaluation import evaluation_prompts
from open_clt.evaluation.calibration import (
    GROUPS,
    Group,
    fit_calibration,
    group_of,
    probabilities,
    reliability,
    save_calibration,
)
from open_clt.evaluation.trials import Trial, trials
from open_clt.graphs.alignment.position_roles import template_pattern
from open_clt.graphs.targets import TokenLogits
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.transcoder import Transcoder
from open_clt.visualization.report_figures import visualize_reliability

AIM = 0.1
FITTED = ("two_hop", "successor", "pronoun", "agreement", "capitals")
MEASURED = ("indirect_object", "induction", "opposites", "languages", "currencies")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "two_hop": templates.TWO_HOP_TEMPLATES["capital"],
    "successor": templates.SUCCESSOR_TEMPLATES,
    "pronoun": tuple(template for template, _ in templates.PRONOUN_TEMPLATES),
    "agreement": tuple(template for template, *_ in templates.AGREEMENT_TEMPLATES),
    "indirect_object": templates.INDIRECT_OBJECT_TEMPLATES,
    "opposites": templates.OPPOSITE_TEMPLATES,
    **templates.COUNTRY_TEMPLATES,
}


def groups_of(task: str, most: int, size: int) -> list[tuple[str | None, list[tuple[str, str]]]]:
    """The prompts and answers of a task by template, at most ``size`` of each of ``most`` templates."""
    prompts = [(prompt.prompt, prompt.answer) for prompt in evaluation_prompts(task)]
    if task not in TEMPLATES:
        return [(None, prompts[number * size : (number + 1) * size]) for number in range(most)]
    groups = []
    for template in TEMPLATES[task]:
        pattern = template_pattern(template)
        of_template = [each for each in prompts if pattern.fullmatch(each[0])][:size]
        if len(of_template) >= 3:
            groups.append((template, of_template))
    return sorted(groups, key=lambda group: -len(group[1]))[:most]


def trials_of(clt: OpenCrossLayerTranscoder, task: str, arguments: argparse.Namespace) -> list[Trial]:
    """Trials of all prompts of a task that the model answers correctly."""
    model, results = clt.language_model, list[Trial]()
    for template, prompts in groups_of(task, arguments.templates, arguments.prompts):
        graphs = []
        for prompt, answer in prompts:
            token = model.token_ids([answer])[0][0]
            if int(model.logits(model.tokenize(prompt)[None])[0, -1].argmax()) == token:
                graphs.append(attribute(model, clt.transcoder, prompt, targets=TokenLogits(tokens=(answer,))))
        if len(graphs) >= 3:
            replacement = clt.replacement_model()
            results += trials(graphs, replacement, template=template, per_graph=arguments.per_graph)
    return results


def score(fitted: Sequence[Trial], measured: Sequence[Trial], group: Group, transcoder: Transcoder) -> dict[str, float]:
    """Fit on some trials, and measure on others of one group."""
    fitted, measured = ([trial for trial in each if group_of(trial) == group] for each in (fitted, measured))
    calibration = fit_calibration(fitted, transcoder)
    outcome = [trial.as_predicted for trial in measured]
    found = reliability(probabilities(calibration, measured, group).tolist(), outcome)
    share = sum(trial.as_predicted for trial in fitted) / len(fitted)
    constant = reliability([share] * len(measured), outcome)
    return {
        "ece": found.ece,
        "brier": found.brier,
        "constant_ece": constant.ece,
        "constant_brier": constant.brier,
        "share": sum(outcome) / len(outcome),
        "sign": sum(trial.measured * trial.predicted > 0 for trial in measured) / len(measured),
        "answer_changed": sum(trial.answer_changed for trial in measured) / len(measured),
        "trials": len(measured),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """One line for each row."""
    columns = ("trials", "share", "sign", "answer_changed", "ece", "constant_ece", "brier", "constant_brier")
    lines = [f"{'':<34}" + "".join(f"{column:>16}" for column in columns)]
    for name, row in rows.items():
        lines.append(
            f"{name:<34}" + "".join(f"{row[c]:>16.0f}" if c == "trials" else f"{row[c]:>16.3f}" for c in columns)
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make all trials, fit, measure, and print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="the language model (default: the embedded one)")
    parser.add_argument("--transcoder", type=Path, help="directory of a transcoder (default: the embedded one)")
    parser.add_argument("--templates", type=int, default=2, help="most templates of a task (default: 2)")
    parser.add_argument("--prompts", type=int, default=6, help="most prompts of a template (default: 6)")
    parser.add_argument("--per-graph", type=int, default=10, help="nodes, and edges, of each graph (default: 10)")
    parser.add_argument("--store", type=Path, help="directory for the calibration that is fitted on all tasks")
    parser.add_argument("--figure", type=Path, help="file for the reliability diagram")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    clt = OpenCrossLayerTranscoder.from_pretrained(chosen.model)
    if chosen.transcoder is not None:
        clt.load_model(chosen.transcoder)
    made = {task: trials_of(clt, task, chosen) for task in (*FITTED, *MEASURED)}
    fitted, measured = ([trial for task in names for trial in made[task]] for names in (FITTED, MEASURED))
    results = {group: score(fitted, measured, group, clt.transcoder) for group in GROUPS}
    print(f"fitted on {', '.join(FITTED)}; measured on {', '.join(MEASURED)}\n{table(results)}\n")
    left_out = {
        f"{group}, {task} left out": score(
            [trial for name, each in made.items() if name != task for trial in each], made[task], group, clt.transcoder
        )
        for group in ("node", "consensus_node")
        for task in made
    }
    print(f"all tasks but one\n{table(left_out)}\n")
    if chosen.figure is not None:
        calibration = fit_calibration(fitted, clt.transcoder)
        curves = {}
        for group in GROUPS:
            of_group = [trial for trial in measured if group_of(trial) == group]
            outcome = [trial.as_predicted for trial in of_group]
            curves[group.replace("_", " ")] = reliability(probabilities(calibration, of_group, group).tolist(), outcome)
        visualize_reliability(curves, save_path=chosen.figure)
    if chosen.store is not None:
        save_calibration(fit_calibration([*fitted, *measured], clt.transcoder), chosen.store)
    main_result = results["consensus_node"]
    reached = "reached" if main_result["ece"] < AIM else "missed"
    print(f"aim: an expected calibration error below {AIM} on tasks that were not fitted; {reached}")
    numbers = {group: {key: round(value, 4) for key, value in row.items()} for group, row in results.items()}
    print(json.dumps({"ece": round(main_result["ece"], 4), **numbers, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()

"""Truth suite: one row for each dictionary, with what its graphs say against what is known of the embedded model.

    python benchmarks/truth/suite.py                                    the transcoder that ships
    python benchmarks/truth/suite.py --transcoder A --transcoder B      directories of transcoders, in any layout
    python benchmarks/truth/suite.py --transcoder neurons --limit 10    the language model's own neurons
    python benchmarks/truth/suite.py --transcoder A --graphs DIR        circuit-tracer's JSON files instead of graphs
    python benchmarks/truth/suite.py --list                             the prompts, for another program to trace

The embedded model learned tasks that were made from rules, so the token that an answer follows from is known
(``known_prompts.py``). For each task and dictionary:

    cue          In the graph of the answer, is this token the most influential of all tokens after BOS?
    necessary    With the ``--features`` most influential features of the graph at 0, is the answer no longer the
                 likeliest token of the model itself?
    control      The same for as many other features, drawn at random at the same layers and positions.
    sufficient   With every feature that pruning removed at 0, does the model whose MLPs are the transcoder still say
                 the answer?

For two-hop prompts, the state between city and capital is known too:

    bypass       The share of the city's positive influence on the answer that goes along paths without a feature of
                 the state, mean over prompts (``columns/bypass.py``).
    shortcut     The share of prompts whose bypass share is at least one half.
    path, ablation, swap, all
                 The questions of ``known_circuits.py``, in the model itself: is there a path of the state's features,
                 is the answer lost without them, does another state in their place give its own capital, all three?

The model goes from the city to the state and from the state to its capital. A cross-layer transcoder can be sparse by
writing the capital directly from features of the city. Its graph then lacks the step in between: the headline criticism
of these transcoders. Three more groups of columns are measured on fewer prompts:

    naming       Is the hidden hop of a two-hop prompt named with its state (``names.py``)? ``--names`` prompts, and a
                 text of ``--tokens`` tokens.
    attention    Is the top pair of sources that explain a head about the rule, and of a random head (control)?
                 ``--attention`` prompts of each task of ``attention.py``.
    calibration  Does the answer's change by an ablation agree with the graph's prediction to a factor of 2? The ECE is
                 that of a regression which is fitted on some tasks and measured on the others (``calibration.py``).
                 ``--ablations`` features of each of ``--trials`` graphs of a task.

A number is a share of the prompts that the model answers correctly, with the interval that holds 95 % of 2,000 means
of prompts drawn again (bootstrap). A dash says that the dictionary cannot give a number; the reason stands below the
tables. FVU, L0 and agreement are measured on held-out text. The last line is JSON, one object for each dictionary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from columns.looks import looks
from columns.naming import named
from columns.prompts import Prompts, count_of
from columns.reliability import calibration_shares
from columns.shares import shares
from columns.table import tables
from dictionaries import Dictionary, Graphs
from known_circuits import questions
from known_prompts import TASKS, known_prompts
from torch import Tensor

from open_clt.data.contexts import pack_contexts
from open_clt.embedded.corpus import generate_texts
from open_clt.errors import OpenCLTError
from open_clt.evaluation.evaluate import measure
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.model import ReplacementModel

HELD_OUT_DOCUMENTS, HELD_OUT_SEED, CONTEXT_LENGTH = 300, 500_000_002, 40
GROUPS = (*TASKS, "naming", "attention", "calibration")
"""Groups of columns."""
_FROM_FILES = "Attention is explained by OpenCLT, and not by the graphs of a directory."
Group = dict[str, dict[str, float] | None]


class Scores:
    """The scores of one dictionary."""

    def __init__(self, dictionary: Dictionary, options: argparse.Namespace) -> None:
        self.dictionary, self.options = dictionary, options
        self.graphs = Graphs(dictionary, options.graphs, options.export, options.threshold)
        self.generator = torch.Generator().manual_seed(options.seed)

    def row(self) -> dict[str, Any]:
        """All numbers of the dictionary, and the reason for each dash."""
        started = time.monotonic()
        row: dict[str, Any] = {"dictionary": self.dictionary.name, **self._on_text()}
        dashes = dict[str, str]()
        why = self.dictionary.why_no_graphs()
        measures = {} if why else self._measures()
        for group in GROUPS:
            try:
                row[group] = measures[group]() if group in measures else None
            except OpenCLTError as error:
                row[group], dashes[group] = None, str(error)
            if group not in measures:
                dashes[group] = why or self._not_measured(group)
        return {**row, "dashes": dashes, "seconds": round(time.monotonic() - started, 1)}

    def _measures(self) -> dict[str, Callable[[], Group]]:
        """A function for each group of columns that is asked for."""
        prompts, options = Prompts(self.dictionary, self.graphs, self.options), self.options
        measures: dict[str, Callable[[], Group]] = {
            task: lambda task=task: shares(prompts.of(task), self.generator) for task in TASKS
        }
        if options.names:
            measures["naming"] = self._naming
        if options.attention and not self.graphs.are_read:
            measures["attention"] = self._attention
        if options.trials:
            transcoder = self.dictionary.transcoder
            measures["calibration"] = lambda: calibration_shares(prompts.trials, transcoder, self.generator)
        return measures

    def _not_measured(self, group: str) -> str:
        if group == "attention" and self.options.attention:
            return _FROM_FILES
        option = {"naming": "names", "attention": "attention", "calibration": "trials"}[group]
        return f"Not measured, because --{option} is 0."

    def _on_text(self) -> dict[str, float]:
        replaced = ReplacementModel(self.dictionary.model, self.dictionary.transcoder)
        numbers = measure(replaced, held_out(self.dictionary.model), batch_size=32).totals()
        return {name: round(float(numbers[name]), 4) for name in ("fvu", "worst_fvu", "l0", "top1_agreement")}

    def _naming(self) -> Group:
        options = self.options
        asked = questions(options.names, options.development)
        found = named(self.dictionary, self.graphs, asked, tokens=options.tokens, seed=options.seed)
        return shares(found, self.generator)

    def _attention(self) -> Group:
        options = self.options
        by_task = looks(self.dictionary, options.attention, development=options.development, seed=options.seed)
        together = shares([numbers for rows in by_task.values() for numbers in rows], self.generator)
        pairs = {f"pair_{task}": shares(rows, self.generator).get("pair") for task, rows in by_task.items()}
        return {**together, **pairs}


def held_out(model: LanguageModel) -> Tensor:
    """Contexts of held-out text, as the zoo uses them."""
    texts = generate_texts(HELD_OUT_DOCUMENTS, HELD_OUT_SEED)
    return pack_contexts(texts, model, CONTEXT_LENGTH, from_start=True)


def listed(options: argparse.Namespace) -> list[str]:
    """Each prompt as a line of JSON, with its task, its right answer, and the token that competes with it."""
    model, names = Dictionary.load().model, ("task", "prompt", "answer", "competitor")
    return [
        json.dumps({name: getattr(known, name) for name in names})
        for task in TASKS
        for known in known_prompts(model, task, count_of(task, options), development=options.development)
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = made.add_argument
    option("--transcoder", action="append", help="embedded, neurons, or a transcoder's directory; may be repeated")
    option("--graphs", type=Path, help="directory of circuit-tracer's JSON files that take the place of our graphs")
    option("--export", type=Path, help="directory that receives our graphs, pruned, as circuit-tracer's JSON files")
    option("--list", action="store_true", help="print the prompts with their answers, and nothing else")
    option("--limit", type=int, default=60, help="use at most this many two-hop prompts (default: 60)")
    option("--others", type=int, default=30, help="use at most this many prompts of each other task (default: 30)")
    option("--names", type=int, default=20, help="prompts of naming; 0 leaves it out (default: 20)")
    option("--tokens", type=int, default=80_000, help="tokens of the text for naming (default: 80,000)")
    option("--attention", type=int, default=8, help="prompts of each attention task; 0 leaves it out (default: 8)")
    option("--trials", type=int, default=10, help="graphs of a task for calibration; 0 leaves it out (default: 10)")
    option("--ablations", type=int, default=6, help="ablations of each of these graphs (default: 6)")
    option("--development", action="store_true", help="use prompts that are not held out")
    option("--features", type=int, default=20, help="number of features that are ablated (default: 20)")
    option("--factor", type=float, default=1.25, help="as in known_circuits.py (default: 1.25)")
    option("--threshold", type=float, default=0.9, help="influence that pruning keeps (default: 0.9)")
    option("--seed", type=int, default=0, help="seed of controls and of bootstrap draws (default: 0)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Score each dictionary, print the tables, and print the line of JSON."""
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(listed(options)))
        return
    rows: list[dict[str, Any]] = []
    for source in options.transcoder or ["embedded"]:
        dictionary = Dictionary.load(source)
        rows.append(Scores(dictionary, options).row())
        print(f"{dictionary.name}: {rows[-1]['seconds']} s", flush=True)
    print(tables(rows))
    print(json.dumps({row["dictionary"]: row for row in rows}))


if __name__ == "__main__":
    main()

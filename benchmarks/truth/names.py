"""Names of supernodes: is the hidden hop of two-hop prompts found, and named with its state?

    python benchmarks/truth/names.py                  the embedded model and its transcoder, all held-out prompts
    python benchmarks/truth/names.py --development    the prompts on which the rule for the name was chosen

"The capital of the state containing Dallas is" -> " Austin" needs a fact that the prompt does not name: Texas. The
search (``open_clt.circuits.hidden_hop``) gets the graph of the prompt and a text, and returns one supernode with one
name, or none. It does not see the facts; they only judge the name. The prompts are those of ``known_circuits.py``.
Those for development are about other cities, of whose state no training text says the capital in a sentence about the
city (``two_hop_transfer`` and ``two_hop_composed``).

    named      The name is the state.
    refused    The name of another state, drawn at random, is planted on the supernode; at least one claim that the name
               makes (``fires``, ``stands``) fails on text and prompts that played no part in the naming.
    kept       The name that was found passes both claims.
    random     As ``refused``, but the true state is planted on as many features, drawn at random from those that are
               active at the same layers and positions.

The last line is JSON. Intervals are 95 % percentile bootstraps over prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from known_circuits import STATES, Question, question_of, questions

from open_clt.attribution.attribute import attribute
from open_clt.circuits.claims import LEAST_AREA, LEAST_SIMILARITY
from open_clt.circuits.encoded_text import EncodedText
from open_clt.circuits.hidden_hop import HopSettings, find_hidden_hop
from open_clt.circuits.measuring import Bench, cells_of
from open_clt.circuits.substitution import Cell
from open_clt.embedded.evaluation import evaluation_prompts
from open_clt.embedded.held_out import HeldOutText
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.transcoder import Transcoder

AIM = 0.95


class Outcome(NamedTuple):
    """What was found for one prompt."""

    question: Question
    name: str | None
    """The name of the hidden hop; None if none was found."""
    source: str
    """The token that the search took for the source."""
    members: int
    wrong: str
    """The name that was planted."""
    kept: bool
    refused: bool
    random_refused: bool

    @property
    def named(self) -> bool:
        """Whether the name is the state."""
        return self.name == self.question.state


class Search:
    """The model, the text for naming, and the text for the claims."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
        self.model, self.transcoder = clt.language_model, clt.transcoder
        self.text, self.fresh = (
            encoded(self.model, self.transcoder, size, seed)
            for size, seed in ((arguments.tokens, arguments.seed), (arguments.fresh_tokens, arguments.seed + 1000))
        )
        self.draw = random.Random(arguments.seed)

    def examine(self, question: Question) -> Outcome:
        """Find the hidden hop of one prompt, and test its name, another name, and the state on other features."""
        graph = attribute(self.model, self.transcoder, question.prompt)
        hop = find_hidden_hop(self.model, self.transcoder, graph, self.text)
        wrong = self.draw.choice([state for state in STATES if state != question.state])
        if hop is None:
            return Outcome(question, None, "", 0, wrong, kept=False, refused=True, random_refused=True)
        bench = Bench(self.model, self.transcoder, self.fresh, question.prompt, hop.source, HopSettings())
        cells = cells_of(hop.supernode.members)
        return Outcome(
            question,
            hop.name,
            graph.info.token_strings[hop.source].strip(),
            len(cells),
            wrong,
            kept=holds(bench, hop.name, cells),
            refused=not holds(bench, wrong, cells),
            random_refused=not holds(bench, question.state, self.others(graph, cells)),
        )

    def others(self, graph: AttributionGraph, cells: Sequence[Cell]) -> list[Cell]:
        """As many other features of the same layers and positions, drawn at random."""
        nodes = graph.nodes
        rows = (nodes.kind == NodeKind.FEATURE).nonzero().flatten()
        active = list(
            zip(*(column[rows].tolist() for column in (nodes.layer, nodes.position, nodes.index)), strict=True)
        )
        chosen: list[Cell] = []
        for place in sorted({cell[:2] for cell in cells}):
            members = [cell for cell in cells if cell[:2] == place]
            pool = [cell for cell in active if cell[:2] == place and cell not in members]
            chosen += self.draw.sample(pool, min(len(members), len(pool)))
        return chosen


def encoded(model: LanguageModel, transcoder: Transcoder, tokens: int, seed: int) -> EncodedText:
    """Generated text of the embedded model's world, with the features that are active in it."""
    return EncodedText(model, transcoder, HeldOutText(max_tokens=tokens, seed=seed).contexts(model))


def development_questions(limit: int | None) -> list[Question]:
    """Two-hop prompts about the cities that no training text connects with a capital, in a random order."""
    prompts = [*evaluation_prompts("two_hop_transfer"), *evaluation_prompts("two_hop_composed")]
    random.Random(0).shuffle(prompts)
    return [question_of(asked.prompt, str(asked.intermediate).strip()) for asked in prompts[:limit]]


def holds(bench: Bench, name: str, cells: Sequence[Cell]) -> bool:
    """Whether both claims about a name hold; a claim that cannot be measured fails."""
    return bench.fires(name, cells).value >= LEAST_AREA and bench.stands(name, cells).value >= LEAST_SIMILARITY


def interval(values: Sequence[bool], draws: int = 2000) -> tuple[float, float]:
    """The 95 % percentile bootstrap of a share."""
    generator = random.Random(0)
    shares = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return shares[int(0.025 * draws)], shares[int(0.975 * draws)]


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each wording of the question, and one for all prompts."""
    columns = ("found", "named", "kept", "refused", "random")
    lines = [f"{'prompt':<56}{'prompts':>8}{'members':>9}  " + "".join(f"{column:>9}" for column in columns)]
    by_wording: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_wording.setdefault(outcome.question.prompt.replace(outcome.question.city, "..."), []).append(outcome)
    for wording, group in (*sorted(by_wording.items()), ("all", list(outcomes))):
        cells = "".join(f"{share:>9.1%}" for share in shares(group).values())
        lines.append(f"{wording:<56}{len(group):>8}{sum(o.members for o in group) / len(group):>9.1f}  {cells}")
    return "\n".join(lines)


def shares(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The share of the prompts for each column of the table."""
    count = len(outcomes)
    return {
        "found_share": sum(outcome.name is not None for outcome in outcomes) / count,
        "named_share": sum(outcome.named for outcome in outcomes) / count,
        "kept_share": sum(outcome.kept for outcome in outcomes) / count,
        "refused_share": sum(outcome.refused for outcome in outcomes) / count,
        "random_refused_share": sum(outcome.random_refused for outcome in outcomes) / count,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Find and test all names, and print the table, the wrong names and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="use at most this many prompts (default: all)")
    parser.add_argument("--development", action="store_true", help="use prompts about other cities")
    parser.add_argument("--tokens", type=int, default=160_000, help="tokens of the text for naming (default: 160,000)")
    parser.add_argument("--fresh-tokens", type=int, default=20_000, help="tokens for the claims (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the texts and of the draws (default: 0)")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    search = Search(chosen)
    asked = development_questions(chosen.limit) if chosen.development else questions(chosen.limit, development=False)
    outcomes = [search.examine(question) for question in asked]
    print(table(outcomes))
    for outcome in outcomes:
        if not outcome.named:
            print(f"{outcome.question.prompt} [{outcome.question.state}]: named {outcome.name}, kept: {outcome.kept}")
    sources = sum(outcome.source == outcome.question.city for outcome in outcomes)
    print(f"the source is the city in {sources} of {len(asked)} prompts")
    print("accepted wrong names:", [(o.question.state, o.wrong) for o in outcomes if not o.refused])
    low, high = interval([outcome.named for outcome in outcomes])
    values = {name: round(share, 4) for name, share in shares(outcomes).items()}
    print(f"aim: {AIM:.0%} named with the state; {'reached' if values['named_share'] >= AIM else 'missed'}")
    row = {**values, "named_low": round(low, 4), "named_high": round(high, 4)}
    print(json.dumps({**row, "prompts": len(asked), "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()

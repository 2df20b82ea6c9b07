"""The table of docs/model_families.md, measured on tiny random models: ``python -m tests.measured_families``.

Each cell is a measurement: whether a result is exact to 1e-5, or the sentence with which OpenCLT refuses.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from open_clt.attribution.attribute import attribute
from open_clt.config import CrossLayerConfig, TopKConfig
from open_clt.errors import OpenCLTError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.interventions.observation import observe
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from tests.model_families import FAMILIES, load_family, own_logits
from tests.random_transcoders import random_architecture

PROMPT = "The cat sat on the dog"
EXACT = "exact"
TOLERANCE = 1e-5


class Row(NamedTuple):
    """What was measured for one family."""

    family: str
    hooks: tuple[str, ...]
    """Hooks that encoders can read, at all of which the cells were measured."""
    load: str
    """Whether the logits are those of the model of transformers."""
    replace: str
    """Whether a replacement model with error correction has the logits of the language model."""
    attribute: str
    """Whether every row of a graph adds up to its total."""
    patch: str
    """Whether effects of constrained patching are the edges of the graph; without a graph, whether they are linear."""


@torch.no_grad()
def measured(family: str, folder: Path) -> Row:
    """Load a tiny random model of a family, and measure its row."""
    try:
        model = load_family(family, folder)
    except OpenCLTError as error:
        return Row(family, (), _sentence(error, str(folder)), "", "", "")
    tokens = model.tokenize(PROMPT)[None]
    cells = [_exact(_relative(model.logits(tokens), own_logits(folder, tokens)))]
    transcoders = [transcoder_of(model, hook) for hook in model.input_hooks or ("hook_resid_mid",)]
    for measure in (_replace, _attribute, _patch):
        cells.append(_cell(measure, model, transcoders, str(folder)))
    return Row(family, model.input_hooks, *cells)


def _cell(
    measure: Callable[[LanguageModel, CrossLayerTranscoder], float],
    model: LanguageModel,
    transcoders: list[CrossLayerTranscoder],
    name: str,
) -> str:
    """The result of a measurement with each transcoder: exact if all are, or else the first that is not."""
    results: list[str] = []
    for transcoder in transcoders:
        try:
            results.append(_exact(measure(model, transcoder)))
        except OpenCLTError as error:
            results.append(_sentence(error, name))
    return next((result for result in results if result != EXACT), EXACT)


def _replace(model: LanguageModel, transcoder: CrossLayerTranscoder) -> float:
    tokens = model.tokenize(PROMPT)[None]
    logits = ReplacementModel(model, transcoder, error_correction=True).logits(tokens)
    with ReplacementModel(model, transcoder).replacing():
        outputs = model.capture(tokens, transcoder.config.input_hook)
    rebuilt = transcoder(outputs.inputs[0, 1:]).reconstruction
    return max(_relative(logits, model.logits(tokens)), _relative(outputs.targets[0, 1:], rebuilt))


def _attribute(model: LanguageModel, transcoder: CrossLayerTranscoder) -> float:
    return float(attribute(model, transcoder, PROMPT).check().relative_to_row)


def _patch(model: LanguageModel, transcoder: CrossLayerTranscoder) -> float:
    try:
        graph = attribute(model, transcoder, PROMPT)
    except OpenCLTError:
        return _nonlinearity(model, transcoder)
    return edges_less_effects(model, transcoder, graph)


def edges_less_effects(model: LanguageModel, transcoder: CrossLayerTranscoder, graph: AttributionGraph) -> float:
    """The largest difference between edges and effects of ablations, relative to the largest edge if it is above 1."""
    replacement = ReplacementModel(model, transcoder, error_correction=True)
    before = observe(replacement, PROMPT)
    features = [row for row in range(graph.n_nodes) if graph.node(row).kind is NodeKind.FEATURE]
    edges, largest, off = graph.adjacency(), 0.0, 0.0
    for source in [row for row in features if graph.node(row).layer == 0][-2:]:
        node = graph.node(source)
        record = intervene(replacement, before, Intervention(0, node.position, node.index, value=0.0))
        for row in features:
            target = graph.node(row)
            change = record.preactivation_change(transcoder, target.layer, torch.tensor([target.index]))
            off = max(off, abs(float(change[target.position, 0] + edges[row, source])))
            largest = max(largest, abs(float(edges[row, source])))
    assert largest > 0.01, "the edges are too small to tell anything"
    return off / max(1.0, largest)


def _nonlinearity(model: LanguageModel, transcoder: CrossLayerTranscoder) -> float:
    """How far twice a change is from having twice the effect on the last residual stream."""
    replacement = ReplacementModel(model, transcoder, error_correction=True)
    before = observe(replacement, PROMPT)
    feature = int(before.features[0].dense()[2].argmin())
    once, twice = (
        intervene(replacement, before, Intervention(0, 2, feature, value=value)).after.streams[-1] - before.streams[-1]
        for value in (1.0, 2.0)
    )
    return _relative(twice, 2 * once)


def transcoder_of(model: LanguageModel, input_hook: str) -> CrossLayerTranscoder:
    config = CrossLayerConfig(
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_features=16,
        nonlinearity=TopKConfig(k=3),
        input_hook=input_hook,
    )
    transcoder = random_architecture(config)
    assert isinstance(transcoder, CrossLayerTranscoder)
    return transcoder


def _relative(computed: torch.Tensor, expected: torch.Tensor) -> float:
    return float((computed - expected).abs().max() / expected.abs().max())


def _exact(deviation: float) -> str:
    return EXACT if deviation < TOLERANCE else f"off by {deviation:.0e}"


def _sentence(error: OpenCLTError, name: str) -> str:
    """The sentence of a refusal, without the name of the folder, and without digits that depend on the machine."""
    sentence = str(error).replace(repr(name), "MODEL").replace(name, "MODEL")
    return re.sub(r"\d\.\de[-+]\d\d", "…", sentence)


def read_table(text: str) -> dict[str, Row]:
    """The rows of a document that holds ``table``, by their family."""
    sentences = {int(number): sentence for number, sentence in re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)}

    def result(cell: str) -> str:
        refused = re.fullmatch(r"refused \((\d+)\)", cell)
        return sentences[int(refused[1])] if refused else cell.replace("-", "")

    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(Row._fields) and cells[0] in FAMILIES:
            rows[cells[0]] = Row(cells[0], tuple(re.findall(r"`(.*?)`", cells[1])), *map(result, cells[2:]))
    return rows


def table(rows: list[Row]) -> list[str]:
    """The lines of the table: one per family, then one per sentence, which cells name by its number."""
    sentences: list[str] = []

    def cell(text: str) -> str:
        if text in (EXACT, ""):
            return text or "-"
        if text not in sentences:
            sentences.append(text)
        return f"refused ({sentences.index(text) + 1})"

    lines = ["| family | encoders read | load | replace | attribute | patch |", "|---|---|---|---|---|---|"]
    for row in rows:
        hooks = ", ".join(f"`{hook}`" for hook in row.hooks) or "-"
        lines.append(f"| {row.family} | {hooks} | {' | '.join(cell(text) for text in row[2:])} |")
    return [*lines, "", *(f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1))]


def main() -> None:
    """Print the table for all families."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(family, Path(folder) / family) for family in FAMILIES]
    sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()

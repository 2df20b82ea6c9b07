"""Dictionaries: what the truth suite scores, and where their graphs come from.

A dictionary is a transcoder in any layout that OpenCLT reads. Its graphs are computed by OpenCLT, or read from a
directory of circuit-tracer's JSON files of the same prompts, so that another program's graphs can be scored. Such a
graph may have several outputs; only that of the right answer is used, or of its difference from the competitor. A
prompt of which the directory has no graph is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, final

import torch

from open_clt.attribution.attribute import attribute
from open_clt.attribution.budget import default_budget
from open_clt.attribution.sources import attributable
from open_clt.errors import AttributionError
from open_clt.graphs.formats.circuit_tracer import write_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_reader import read_circuit_tracer
from open_clt.graphs.formats.circuit_tracer_schema import METADATA_FILE, GraphCard
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.graphs.targets import LogitDifference, TokenLogits
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.transcoders.named import transcoder_of
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.transcoder import Transcoder

_KEPT = 4
"""Number of computed graphs that are kept, because several columns need the same one."""


class Dictionary(NamedTuple):
    """A transcoder with its name in the table."""

    name: str
    model: LanguageModel
    transcoder: Transcoder

    @classmethod
    def load(cls, source: str | None = None, model: str = "embedded") -> Dictionary:
        """The transcoder of a directory, the one that ships with the package, or the model's own neurons."""
        if source in (None, "embedded"):
            shipped = OpenCrossLayerTranscoder.from_pretrained(model)
            return cls("embedded", shipped.language_model, shipped.transcoder)
        language_model = load_language_model(model)
        return cls(Path(source).name, language_model, transcoder_of(language_model, source))

    def models(self) -> dict[str, ReplacementModel]:
        """The model itself, whose MLPs compute as before, and the model whose MLPs are the transcoder."""
        return {
            name: ReplacementModel(self.model, self.transcoder, error_correction=corrected)
            for name, corrected in (("itself", True), ("replaced", False))
        }

    def why_no_graphs(self) -> str | None:
        """The reason why the dictionary has no graphs; None if it has graphs."""
        config = self.transcoder.config
        if config.input_hook == config.target_hook:
            return (
                f"The transcoder reads and writes {config.target_hook!r}: it is an autoencoder, whose features do not "
                "say how the layer computes its output."
            )
        try:
            attributable(self.transcoder, self.model)
        except AttributionError as error:
            return str(error)
        return None


@final
class Graphs:
    """The graph of a dictionary for each prompt: computed, or read from files.

    With ``export``, computed graphs are also written there as circuit-tracer's JSON, pruned to ``threshold`` of their
    influence.
    """

    def __init__(
        self, dictionary: Dictionary, directory: Path | None = None, export: Path | None = None, threshold: float = 0.9
    ) -> None:
        self.dictionary = dictionary
        self._read, self._export, self._threshold = directory, export, threshold
        self._computed: dict[tuple[str, str, str | None], AttributionGraph] = {}
        self._files: dict[str, Path] = {}
        for path in [] if directory is None else sorted(directory.glob("*.json")):
            if path.name != METADATA_FILE:
                prompt = _without_bos(read_circuit_tracer(path).graph.info.prompt, dictionary.model)
                self._files.setdefault(prompt, path)
        if directory is not None and not self._files:
            raise AttributionError(f"{directory} has no graphs; give a directory of circuit-tracer's JSON files.")

    @property
    def are_read(self) -> bool:
        """Whether the graphs come from files."""
        return self._read is not None

    def has(self, prompt: str) -> bool:
        """Whether there is a graph of a prompt; of each prompt, if graphs are computed."""
        return self._read is None or prompt in self._files

    def of(self, prompt: str, answer: str, competitor: str | None = None) -> AttributionGraph:
        """The graph of one prompt, with one output: the answer's logit, or the difference from the competitor's.

        A graph from a file has the answer's logit if it does not have the difference. Raises AttributionError if the
        dictionary has no graphs, or the directory has none of this prompt and answer.
        """
        if self._read is not None:
            if prompt not in self._files:
                raise AttributionError(f"{self._read} has no graph of the prompt {prompt!r}.")
            return self._of_answer(self._files[prompt], prompt, answer, competitor)
        key = prompt, answer, competitor
        if key not in self._computed:
            while len(self._computed) >= _KEPT:
                del self._computed[next(iter(self._computed))]
            self._computed[key] = self._attribute(*key)
        return self._computed[key]

    def _attribute(self, prompt: str, answer: str, competitor: str | None) -> AttributionGraph:
        target = TokenLogits(tokens=(answer,))
        if competitor is not None:
            target = LogitDifference(positive=answer, negative=competitor)
        model, transcoder = self.dictionary.model, self.dictionary.transcoder
        graph = attribute(model, transcoder, prompt, targets=target, max_feature_nodes=default_budget(transcoder))
        if self._export is not None:
            slug = re.sub(r"[^A-Za-z0-9]+", "-", prompt).strip("-")
            write_circuit_tracer(graph.prune(self._threshold), self._export, GraphCard(slug=slug))
        return graph

    def _of_answer(self, path: Path, prompt: str, answer: str, competitor: str | None) -> AttributionGraph:
        """The graph of a file with one output; the file may lack the tokens' ids, and lacks what the output is."""
        graph, model = read_circuit_tracer(path).graph, self.dictionary.model
        (token,), *others = model.token_ids([answer, *([] if competitor is None else [competitor])])
        nodes = graph.nodes
        target: TokenLogits | LogitDifference = TokenLogits(tokens=(answer,))
        chosen = graph.of_kind(NodeKind.LOGIT) & (nodes.index == token)
        differences = graph.of_kind(NodeKind.TARGET)
        if others and int(differences.sum()) == 1:
            chosen, target = differences, LogitDifference(positive=token, negative=others[0][0])
        if int(chosen.sum()) != 1:
            raise AttributionError(f"{path} does not have {answer!r} as an output.")
        graph = graph.part(chosen | ~graph.of_kind(NodeKind.LOGIT, NodeKind.TARGET))
        # The file has no totals, and effects are measured of nodes whose total is known only: here, of what it holds.
        totals = torch.zeros(graph.n_nodes).index_add(0, graph.edges.target, graph.edges.weight)
        table = replace(graph.nodes, total=totals)
        tokens = tuple(int(each) for each in model.tokenize(prompt))
        settings = replace(graph.info.settings, targets=(target,))
        return replace(graph, nodes=table, info=replace(graph.info, tokens=tokens, settings=settings))


def _without_bos(prompt: str, model: LanguageModel) -> str:
    """A prompt without the BOS token, which circuit-tracer writes before it."""
    return prompt.removeprefix(model.token_strings(torch.tensor([model.bos_token_id]))[0])

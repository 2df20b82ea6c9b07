"""Measurements of claims: one function for each kind, on a model and a transcoder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_clt.circuits.claims import AblationClaim, Claim, FiresClaim, StandsClaim, SwapClaim
from open_clt.circuits.encoded_text import EncodedText
from open_clt.circuits.hidden_hop import Change, HopSettings, change_of, similarities
from open_clt.circuits.substitution import Cell, substitute
from open_clt.errors import AttributionError
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.interventions.observation import Observed, observe
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.feature import Feature, FeaturePlace
from open_clt.transcoders.transcoder import Transcoder

_FRESH = 3
"""Largest number of prompts with another source and the same output on which an ablation is measured."""


_DRAWS = 3
"""Number of draws of other features whose ablations an ablation is compared with."""


class Measured(NamedTuple):
    """A value of a claim."""

    value: float
    """The value; NaN if it cannot be measured."""
    note: str
    """On what it was measured, or why it cannot be."""


def cells_of(members: Sequence[str]) -> list[Cell]:
    """The layer, position and index of features, from their ids; raises AttributionError without a position."""
    cells: list[Cell] = []
    for member in members:
        feature, position = FeaturePlace.parse(member)
        if position is None:
            raise AttributionError(f"The member {member!r} has no position; write layer:position:feature.")
        cells.append((feature.layer, position, feature.index))
    return cells


@final
@dataclass(frozen=True, eq=False)
class Bench:
    """A model, a transcoder, a prompt and a text, on which the claims of supernodes are measured."""

    model: LanguageModel
    transcoder: Transcoder
    text: EncodedText
    """Text that played no part in finding the supernodes."""
    prompt: str
    """Text of the prompt."""
    source: int
    """Position of the token that the supernodes depend on."""
    settings: HopSettings
    """Settings of the search, which say how many similar tokens are tried."""

    @cached_property
    def tokens(self) -> Int[Tensor, "position"]:
        """Tokens of the prompt."""
        return self.model.tokenize(self.prompt)

    @cached_property
    def _replacement(self) -> ReplacementModel:
        return ReplacementModel(self.model, self.transcoder, error_correction=True)

    @cached_property
    def _norms(self) -> Float[Tensor, "layer feature"]:
        return self.transcoder.decoder_norms().detach().float().cpu()

    def _norm(self, layer: int, index: int) -> float:
        """The norm of a feature's decoder."""
        return float(self._norms[self.transcoder.config.place_of(layer), index])

    @cached_property
    def _changes(self) -> dict[tuple[Cell, ...], Change | None]:
        return {}

    @cached_property
    def _before(self) -> Observed:
        return observe(self._replacement, self.prompt)

    @property
    def output(self) -> str:
        """Token that the model predicts after the prompt."""
        return self.model.token_strings(self._before.logits[-1:].argmax(-1))[0]

    def similar_sources(self) -> list[tuple[int, int]]:
        """One token like the source for each other prediction that such tokens lead to, and that prediction."""
        similar = self.model.unembedding.similar_tokens(int(self.tokens[self.source]), self.settings.similar)
        run = substitute(self.model, self.transcoder, self.tokens, self.source, similar, cells=[])
        output = int(self._before.logits[-1].argmax())
        first: dict[int, int] = {}
        for token, predicted in zip(similar, run.predicted.tolist(), strict=True):
            if predicted != output:
                first.setdefault(predicted, token)
        return [(token, predicted) for predicted, token in first.items()]

    def measure(self, claim: Claim, members: Sequence[str]) -> Measured:
        """Measure a claim of a supernode with these members."""
        cells = cells_of(members)
        self._check(cells)
        match claim:
            case FiresClaim():
                return self.fires(claim.supernode, cells)
            case StandsClaim():
                return self.stands(claim.supernode, cells)
            case AblationClaim():
                return self.ablation(claim.output, cells)
            case SwapClaim():
                return self.swap(claim, cells)

    def _check(self, cells: Sequence[Cell]) -> None:
        """Raise AttributionError if the transcoder or the prompt lacks one of the features."""
        config, last = self.transcoder.config, len(self.tokens) - 1
        for layer, position, index in cells:
            exists = layer in config.model_layers and index < config.n_features
            if not exists or not self.transcoder.first_position <= position <= last:
                raise AttributionError(
                    f"The circuit has the feature {layer}:{position}:{index} (layer, position, feature); the "
                    f"transcoder has {config.n_features} features at layers {config.layer_words}, and the prompt has "
                    f"positions up to {last}."
                )

    def fires(self, name: str, cells: Sequence[Cell]) -> Measured:
        """The area under the ROC curve with which the members tell the tokens of the text near the name."""
        change = self._change(cells)
        if change is None:
            return Measured(float("nan"), "no similar token changes the prediction")
        features = list(dict.fromkeys(Feature(layer, index) for layer, _, index in cells))
        row_of = {feature: row for row, feature in enumerate(features)}
        nearby = self.text.nearby(features)
        direction = torch.zeros(len(features), dtype=torch.double)
        for position in {cell[1] for cell in cells}:
            rows = [row for row, cell in enumerate(cells) if cell[1] == position]
            at = [row_of[Feature(cells[row][0], cells[row][2])] for row in rows]
            direction[at] += nearby.direction(at, change.change[rows])
        area, count = self.text.tells(features, direction, name)
        note = f"{count} of {self.text.n_tokens} tokens are near the name" if count else "the text lacks the name"
        return Measured(area if count else float("nan"), note)

    def stands(self, name: str, cells: Sequence[Cell]) -> Measured:
        """The cosine of the members' change with their change for the name in the place of the source."""
        change = self._change(cells)
        if change is None:
            return Measured(float("nan"), "no similar token changes the prediction")
        (similarity,) = similarities(self.model, self.transcoder, self.tokens, change, self.source, words=[name])
        known = similarity == similarity
        note = f"the name in the place of {self._token(self.source)!r}" if known else "the name is not one token"
        return Measured(similarity, note)

    def ablation(self, output: str, cells: Sequence[Cell]) -> Measured:
        """The fall of the output's log-probability, less that without others, over several prompts."""
        token = self._one_token(output)
        change = self._change(cells)
        if token is None or change is None:
            return Measured(float("nan"), "the output is not one token" if token is None else "nothing changes")
        same = (change.variants.predicted == token).nonzero().flatten()[:_FRESH]
        runs = [self._before, *(observe(self._replacement, row) for row in change.variants.tokens[same])]
        falls = [self._fall(run, token, cells) for run in runs]
        return Measured(sum(falls) / len(falls), f"{len(runs)} prompts, {len(runs) - 1} with another source")

    def _fall(self, run: Observed, token: int, cells: Sequence[Cell]) -> float:
        """The fall of a token's log-probability without the members, less the fall without as many others."""
        kept = [cell for cell in cells if _value(run, cell) > 0]
        draw = random.Random(0)
        drawn = [_as_much(run, kept, self._norm, draw) for _ in range(_DRAWS)]
        controls = [float(self._log_probabilities(run, _ablation(others))[token]) for others in drawn]
        return sum(controls) / len(controls) - float(self._log_probabilities(run, _ablation(kept))[token])

    def swap(self, claim: SwapClaim, cells: Sequence[Cell]) -> Measured:
        """The lead of the other prompt's output when the other supernode takes the place of the members."""
        source, output, other = map(self._one_token, (claim.other_source, claim.output, claim.other_output))
        if source is None or output is None or other is None:
            return Measured(float("nan"), "a token of the claim is not one token of this model")
        prompt = self.tokens.clone()
        prompt[self.source] = source
        run, incoming = observe(self._replacement, prompt), cells_of(claim.other_members)
        self._check(incoming)
        changed = [*_ablation(cells), *_set(incoming, [_value(run, cell) for cell in incoming])]
        after = self._log_probabilities(self._before, changed)
        note = f"{claim.other!r} from the prompt with {claim.other_source!r}"
        return Measured(float(after[other] - after[output]), note)

    def _change(self, cells: Sequence[Cell]) -> Change | None:
        key = tuple(cells)
        if key not in self._changes:
            self._changes[key] = change_of(
                self.model, self.transcoder, self.tokens, self.source, list(cells), settings=self.settings
            )
        return self._changes[key]

    def _log_probabilities(self, run: Observed, changes: Sequence[Intervention]) -> Float[Tensor, "vocab"]:
        """Log-probabilities after the prompt, with some features changed."""
        if not changes:
            return run.logits[-1].float().log_softmax(-1)
        return intervene(self._replacement, run, changes, Iterative()).logits_after[-1].float().log_softmax(-1)

    def _token(self, position: int) -> str:
        return self.model.token_strings(self.tokens[position : position + 1])[0]

    def _one_token(self, text: str) -> int | None:
        ids = self.model.token_ids([text])[0]
        return ids[0] if len(ids) == 1 else None

    __repr__ = short_repr


def _set(cells: Sequence[Cell], values: Sequence[float]) -> list[Intervention]:
    return [Intervention(*cell, value=value) for cell, value in zip(cells, values, strict=True)]


def _ablation(cells: Sequence[Cell]) -> list[Intervention]:
    return _set(cells, [0.0] * len(cells))


def _value(run: Observed, cell: Cell) -> float:
    """The activation of one feature at one position."""
    layer, position, index = cell
    features = run.features[layer]
    entries = (features.rows == position) & (features.features == index)
    return float(features.values[entries].sum())


def _as_much(
    run: Observed, cells: Sequence[Cell], norm: Callable[[int, int], float], draw: random.Random
) -> list[Cell]:
    """Other active features of each layer and position, drawn at random, that together write as much as the members.

    How much a feature writes is its activation times the norm of its decoder.
    """
    chosen: list[Cell] = []
    for layer, position in sorted({cell[:2] for cell in cells}):
        features = run.features[layer]
        here = features.rows == position
        columns = features.features[here].tolist(), features.values[here].tolist()
        written = {index: value * norm(layer, index) for index, value in zip(*columns, strict=True) if value > 0}
        members = {cell[2] for cell in cells if cell[:2] == (layer, position)}
        remaining = sum(written.get(index, 0.0) for index in members)
        others = sorted(written.keys() - members)
        for index in draw.sample(others, len(others)):
            if remaining <= written[index] / 2:
                break
            remaining -= written[index]
            chosen.append((layer, position, index))
    return chosen

"""Verification of a circuit: every claim is measured again, on any model and transcoder.

Members are features of one transcoder. With this transcoder, which the circuit's fingerprint tells, the claims are
measured on the members that the circuit names. With another one, the hidden hop of the prompt is found again with the
circuit's settings. A supernode whose name is found again has new members, and its claims are measured on them; the
claims of a supernode that is not found again fail. A claim that a swap makes is then measured on the other prompt's
hidden hop, which is found in the same way and must have the name that the claim gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch

from open_clt.attribution.attribute import attribute
from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import AblationClaim, Claim, FiresClaim, NamedSupernode, StandsClaim, SwapClaim
from open_clt.circuits.encoded_text import EncodedText
from open_clt.circuits.hidden_hop import HiddenHop, HopSettings, find_hidden_hop
from open_clt.circuits.measuring import Bench, Measured
from open_clt.circuits.substitution import most_surprising
from open_clt.config.arguments import checked_arguments
from open_clt.errors import AttributionError
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.supernodes import Supernode
from open_clt.language.language_model import LanguageModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.transcoder import Transcoder

_TRIED = 5
"""Largest number of other prompts in which a supernode for a swap is looked for."""


class Verdict(NamedTuple):
    """A claim after it was measured again."""

    claim: Claim
    """The claim."""
    measured: float | None
    """The value; None if it cannot be measured."""
    passed: bool
    """Whether the value reaches what the claim needs."""
    note: str
    """On what the value was measured, or why it cannot be."""

    __repr__ = short_repr


@final
@dataclass(frozen=True)
class VerificationReport:
    """The verdicts on all claims of a circuit."""

    circuit: Circuit
    """The circuit."""
    verdicts: tuple[Verdict, ...]
    """One verdict for each claim, in their order."""
    found_again: bool
    """Whether the transcoder is another one, so that the supernodes were found again."""

    @property
    def passed(self) -> bool:
        """Whether all claims hold."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts on claims that do not hold."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    def table(self) -> str:
        """One line for each claim."""
        lines = [f"{'supernode':<20} {'claim':<10} {'measured':>9} {'needed':>7} {'before':>7}  verdict"]
        for claim, measured, passed, note in self.verdicts:
            values = [_number(value) for value in (measured, claim.needed, claim.measured)]
            verdict = f"{'holds' if passed else 'FAILS'} ({note})"
            lines.append(
                f"{claim.supernode:<20} {claim.kind:<10} {values[0]:>9} {values[1]:>7} {values[2]:>7}  {verdict}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The report as plain values."""
        rows = [
            {
                "supernode": claim.supernode,
                "kind": claim.kind,
                "measured": measured,
                "needed": claim.needed,
                "before": claim.measured,
                "passed": passed,
                "note": note,
            }
            for claim, measured, passed, note in self.verdicts
        ]
        return {"passed": self.passed, "found_again": self.found_again, "claims": rows}

    __repr__ = short_repr


@checked_arguments
def verify(circuit: Circuit, model: LanguageModel, transcoder: Transcoder, text: EncodedText) -> VerificationReport:
    """Measure every claim of a circuit again; ``text`` is fresh text of the same kind as that of the circuit.

    Raises AttributionError if the prompt is too short for the circuit.
    """
    bench = _bench(circuit, model, transcoder, text)
    found_again = fingerprint(transcoder) != circuit.transcoder_hash
    hop = None
    if found_again:
        hop = _hop(model, transcoder, circuit.prompt, text, circuit.source, settings=circuit.settings)
    verdicts: list[Verdict] = []
    for claim in circuit.claims:
        members = circuit.supernode(claim.supernode).members
        note = ""
        if found_again:
            members, claim, note = _again(bench, claim, hop)
        measured = Measured(math.nan, note) if note else bench.measure(claim, members)
        verdicts.append(_verdict(claim, measured))
    return VerificationReport(circuit, tuple(verdicts), found_again)


@checked_arguments
def make_circuit(
    model: LanguageModel,
    transcoder: Transcoder,
    graph: AttributionGraph,
    text: EncodedText,
    fresh: EncodedText,
    *,
    supernodes: Sequence[Supernode] | None = None,
    source: int | None = None,
    search: HopSettings | None = None,
    described: str = "",
    transcoder_source: str | None = None,
) -> Circuit:
    """Make a circuit of a graph: named supernodes, and claims with their values, whether or not they hold.

    ``supernodes`` are groups that a person named; by default, the hidden hop of the graph is found in ``text`` and
    named. The claims are measured on ``fresh``, a text that played no part in the naming. ``described`` says in words
    where the texts come from. Raises AttributionError if the prompt is not plain text, if no hidden hop is found, or if
    a supernode has a node that is not a feature.
    """
    settings = search or HopSettings()
    prompt = graph.info.prompt
    if tuple(model.tokenize(prompt).tolist()) != graph.info.tokens:
        raise AttributionError(
            "The graph's prompt is not plain text; a circuit needs a prompt without a chat template."
        )
    hop = find_hidden_hop(model, transcoder, graph, text, source=source, search=settings)
    if hop is None and supernodes is None:
        raise AttributionError(
            f"No hidden hop is found in {prompt[:60]!r}: no word fits the features between its tokens and its output."
        )
    chosen = [hop.supernode] if supernodes is None and hop is not None else list(supernodes or ())
    circuit = Circuit(
        model=model.name,
        transcoder=transcoder_source,
        transcoder_hash=fingerprint(transcoder),
        prompt=prompt,
        source=hop.source if hop is not None else _source(model, graph, source),
        supernodes=tuple(NamedSupernode(name=each.label, members=each.members) for each in chosen),
        claims=(),
        text=described,
        settings=settings,
    )
    bench = _bench(circuit, model, transcoder, fresh)
    claims = [claim for each in circuit.supernodes for claim in _claims(bench, each, text)]
    measured = [
        _with_value(claim, bench.measure(claim, circuit.supernode(claim.supernode).members)) for claim in claims
    ]
    return replace(circuit, claims=tuple(measured))


def _source(model: LanguageModel, graph: AttributionGraph, source: int | None) -> int:
    return most_surprising(model, torch.tensor(graph.info.tokens, device=model.device)) if source is None else source


def _claims(bench: Bench, supernode: NamedSupernode, text: EncodedText) -> list[Claim]:
    """The claims that a name makes: about the name if it is a word, about the output, and about a swap."""
    name = supernode.name
    claims: list[Claim] = []
    if name in text.words:
        claims += [FiresClaim(supernode=name), StandsClaim(supernode=name)]
    output = bench.output
    claims.append(AblationClaim(supernode=name, output=output))
    swap = find_swap(bench, name, text)
    return claims if swap is None else [*claims, swap]


def find_swap(bench: Bench, name: str, text: EncodedText) -> SwapClaim | None:
    """A claim about a swap: the hidden hop of the prompt with a similar source, if it has another name and output."""
    model = bench.model
    for token, predicted in bench.similar_sources()[:_TRIED]:
        prompt = bench.tokens.clone()
        prompt[bench.source] = token
        graph = attribute(model, bench.transcoder, prompt)
        other = find_hidden_hop(model, bench.transcoder, graph, text, source=bench.source, search=bench.settings)
        if other is not None and other.name != name:
            return SwapClaim(
                supernode=name,
                output=bench.output,
                other=other.name,
                other_source=model.token_strings([token])[0],
                other_members=other.supernode.members,
                other_output=model.token_strings([predicted])[0],
            )
    return None


def _again(bench: Bench, claim: Claim, hop: HiddenHop | None) -> tuple[tuple[str, ...], Claim, str]:
    """The members and the claim for another transcoder, and why the claim cannot be measured, if so."""
    if hop is None or hop.name != claim.supernode:
        named = "no word fits its hidden hop" if hop is None else f"it names its hidden hop {hop.name!r}"
        return (), claim, f"not found in this transcoder: {named}"
    if isinstance(claim, SwapClaim):
        ids = bench.model.token_ids([claim.other_source])[0]
        if len(ids) != 1:
            return (), claim, f"{claim.other_source!r} is not one token of this model"
        prompt = bench.tokens.clone()
        prompt[bench.source] = ids[0]
        graph = attribute(bench.model, bench.transcoder, prompt)
        other = find_hidden_hop(
            bench.model, bench.transcoder, graph, bench.text, source=bench.source, search=bench.settings
        )
        if other is None or other.name != claim.other:
            return (), claim, f"{claim.other!r} is not found in this transcoder"
        claim = replace(claim, other_members=other.supernode.members)
    return hop.supernode.members, claim, ""


def _hop(
    model: LanguageModel,
    transcoder: Transcoder,
    prompt: str,
    text: EncodedText,
    source: int,
    *,
    settings: HopSettings,
) -> HiddenHop | None:
    graph = attribute(model, transcoder, prompt)
    return find_hidden_hop(model, transcoder, graph, text, source=source, search=settings)


def _bench(circuit: Circuit, model: LanguageModel, transcoder: Transcoder, text: EncodedText) -> Bench:
    bench = Bench(model, transcoder, text, circuit.prompt, circuit.source, circuit.settings)
    first, last = transcoder.first_position, len(bench.tokens) - 1
    if not first <= circuit.source <= last:
        raise AttributionError(
            f"The source of the circuit is position {circuit.source}; the prompt has the positions {first} to {last}."
        )
    return bench


def _verdict(claim: Claim, measured: Measured) -> Verdict:
    value = None if math.isnan(measured.value) else measured.value
    return Verdict(claim, value, value is not None and value >= claim.needed, measured.note)


def _with_value(claim: Claim, measured: Measured) -> Claim:
    return claim if math.isnan(measured.value) else replace(claim, measured=round(measured.value, 4))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

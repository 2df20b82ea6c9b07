"""Names of hidden hops and their claims: right ones hold, and planted wrong ones are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_clt.attribution.attribute import attribute
from open_clt.circuits.circuit import Circuit
from open_clt.circuits.claims import AblationClaim, FiresClaim, NamedSupernode, StandsClaim
from open_clt.circuits.encoded_text import EncodedText
from open_clt.circuits.hidden_hop import HopSettings, find_hidden_hop
from open_clt.circuits.measuring import Bench, cells_of
from open_clt.circuits.verify import make_circuit, verify
from open_clt.embedded.held_out import HeldOutText
from open_clt.errors import AttributionError, ConfigError
from open_clt.graphs.supernodes import Supernode
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.transcoders.transcoder import Transcoder
from tests.random_transcoders import random_transcoder

HOUSTON = "The capital of the state containing Houston is"


@pytest.fixture(scope="session")
def fresh_text(clt: OpenCrossLayerTranscoder) -> EncodedText:
    contexts = HeldOutText(max_tokens=20_000, seed=5).contexts(clt.language_model)
    return EncodedText(clt.language_model, clt.transcoder, contexts)


@pytest.fixture(scope="session")
def circuit(clt: OpenCrossLayerTranscoder, long_text: EncodedText, fresh_text: EncodedText) -> Circuit:
    graph = attribute(clt.language_model, clt.transcoder, HOUSTON)
    return make_circuit(clt.language_model, clt.transcoder, graph, long_text, fresh_text)


def with_name(circuit: Circuit, name: str) -> Circuit:
    """The circuit with another name, and no claim but those about the name."""
    supernode = replace(circuit.supernodes[0], name=name)
    return replace(circuit, supernodes=(supernode,), claims=(FiresClaim(supernode=name), StandsClaim(supernode=name)))


@pytest.mark.slow
def test_the_hidden_hop_is_found_and_its_claims_hold(
    circuit: Circuit, clt: OpenCrossLayerTranscoder, fresh_text: EncodedText
) -> None:
    assert [supernode.name for supernode in circuit.supernodes] == ["Texas"]
    assert circuit.source == 7
    assert [claim.kind for claim in circuit.claims] == ["fires", "stands", "ablation", "swap"]
    report = verify(circuit, clt.language_model, clt.transcoder, fresh_text)
    assert report.passed, report.table()
    for verdict in report.verdicts:
        assert verdict.measured == pytest.approx(verdict.claim.measured, abs=1e-3)


@pytest.mark.slow
def test_the_support_of_the_state_is_larger_than_that_of_another_city(
    clt: OpenCrossLayerTranscoder, long_text: EncodedText
) -> None:
    """Cincinnati is a candidate for Akron as well, but only Ohio is near all the cities that lead to Columbus."""
    graph = attribute(clt.language_model, clt.transcoder, "The state containing Akron has its capital in")
    hop = find_hidden_hop(clt.language_model, clt.transcoder, graph, long_text)
    assert hop is not None
    candidates = {candidate.word: candidate for candidate in hop.candidates}
    city, state = candidates["Cincinnati"], candidates["Ohio"]
    assert hop.name == "Ohio" == hop.candidates[0].word
    assert city.support < state.support / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Ohio", "Bavaria", "Vermont", "no such word"])
def test_a_planted_name_is_refused(
    circuit: Circuit, clt: OpenCrossLayerTranscoder, fresh_text: EncodedText, name: str
) -> None:
    report = verify(with_name(circuit, name), clt.language_model, clt.transcoder, fresh_text)
    assert not report.passed


@pytest.mark.slow
def test_a_planted_effect_is_refused(circuit: Circuit, clt: OpenCrossLayerTranscoder, fresh_text: EncodedText) -> None:
    """Without the features of Texas, the model does not say Austin, and Lubbock becomes likelier, not less likely."""
    wrong = replace(circuit, claims=(AblationClaim(supernode="Texas", output=" Lubbock"),))
    assert not verify(wrong, clt.language_model, clt.transcoder, fresh_text).passed


@pytest.mark.slow
def test_random_features_do_not_stand_for_the_state(
    circuit: Circuit, clt: OpenCrossLayerTranscoder, fresh_text: EncodedText
) -> None:
    graph = attribute(clt.language_model, clt.transcoder, HOUSTON)
    members = set(circuit.supernodes[0].members)
    others = [node for node in graph.ids() if node[0].isdigit() and node.split(":")[1] == "8" and node not in members]
    planted = NamedSupernode(name="Texas", members=tuple(others[::9][:24]))
    wrong = replace(with_name(circuit, "Texas"), supernodes=(planted,))
    assert not verify(wrong, clt.language_model, clt.transcoder, fresh_text).passed


@pytest.mark.slow
def test_another_transcoder_needs_the_name_to_be_found_again(
    circuit: Circuit, clt: OpenCrossLayerTranscoder, long_text: EncodedText
) -> None:
    """The same transcoder under another fingerprint finds the supernode again, and a random one does not."""
    model, transcoder = clt.language_model, clt.transcoder
    report = verify(replace(circuit, transcoder_hash="another"), model, transcoder, long_text)
    assert report.found_again
    assert report.passed, report.table()
    random: Transcoder = random_transcoder(model)
    contexts = HeldOutText(max_tokens=4000).contexts(model)
    report = verify(circuit, model, random, EncodedText(model, random, contexts))
    assert report.found_again
    assert not any(verdict.passed for verdict in report.verdicts)
    assert all("not found" in verdict.note for verdict in report.verdicts)


@pytest.mark.slow
def test_a_person_can_name_supernodes(clt: OpenCrossLayerTranscoder, short_text: EncodedText) -> None:
    graph = attribute(clt.language_model, clt.transcoder, HOUSTON)
    group = Supernode("say a capital", ("2:8:244",))
    made = make_circuit(clt.language_model, clt.transcoder, graph, short_text, short_text, supernodes=[group])
    assert made.supernodes == (NamedSupernode(name="say a capital", members=("2:8:244",)),)
    assert [claim.kind for claim in made.claims if claim.kind != "swap"] == ["ablation"]


def test_a_source_outside_the_prompt_is_refused(clt: OpenCrossLayerTranscoder, short_text: EncodedText) -> None:
    graph = attribute(clt.language_model, clt.transcoder, HOUSTON)
    for source in (0, 9):
        with pytest.raises(AttributionError, match=str(source)):
            find_hidden_hop(clt.language_model, clt.transcoder, graph, short_text, source=source)


@pytest.mark.parametrize(("name", "value"), [("similar", 0), ("threshold", 1.5), ("similarity", -2.0)])
def test_illegal_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        HopSettings(**{name: value})  # pyright: ignore[reportArgumentType]


def test_a_swap_with_itself_changes_nothing(clt: OpenCrossLayerTranscoder, short_text: EncodedText) -> None:
    """The members that leave come back with their own values, so the lead is that of the plain run."""
    from open_clt.circuits.claims import SwapClaim

    bench = Bench(clt.language_model, clt.transcoder, short_text, HOUSTON, 7, HopSettings())
    members = ("2:8:244", "0:7:226")
    claim = SwapClaim(
        supernode="a", output=" Austin", other="b", other_source=" Houston", other_members=members,
        other_output=" Denver",
    )  # fmt: skip
    logits = clt.language_model.logits(clt.language_model.tokenize(HOUSTON)[None])[0, -1].log_softmax(-1)
    austin, denver = (ids[0] for ids in clt.language_model.token_ids([" Austin", " Denver"]))
    measured = bench.swap(claim, cells_of(members))
    assert measured.value == pytest.approx(float(logits[denver] - logits[austin]), abs=1e-3)
    assert torch.isfinite(torch.tensor(measured.value))

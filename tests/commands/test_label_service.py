"""``open-clt features`` with a language model that labels: what it is asked, whose labels win, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.labelling.service import endpoint as endpoint_module
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.mistakes import assert_mistake
from tests.features.labelling.service.stand_in import Raw, answering
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS

KEY = "sk-secret-123"


@pytest.fixture
def command(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    """A command that measures the features of a random transcoder, in the folder ``clt``, on a short text."""
    save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "clt")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))
    names = ["--model", str(tiny_gpt2_folder), "--transcoder", str(tmp_path / "clt")]
    return ["features", *names, "--text", str(tmp_path / "text.txt"), "--context-length", "12", "--max-tokens", "120"]


@pytest.fixture(autouse=True)
def _no_pauses_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "wait", lambda _: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.slow
def test_own_labels_win_over_those_of_the_service_which_win_over_automatic_ones(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {Feature(layer, 3): "mine" for layer in (0, 1)}
    (tmp_path / "labels.csv").write_text("feature,label\nL0/3,mine\nL1/3,mine\n")
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(lambda messages: f"[EXPLANATION]: written {messages[0]['role']}") as service:
        options = ["--label-endpoint", service.url, "--label-model", "small", "--label-key-env", "MY_KEY"]
        limits = ["--label-limit", "6", "--label-scorer", "none", "--labels", str(tmp_path / "labels.csv")]
        assert main([*command, *options, *limits]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert "small labelled 6 of " in printed
    assert KEY not in printed
    assert set(service.keys) == {f"Bearer {KEY}"}
    assert {request["model"] for request in service.requests} == {"small"}
    assert len(service.requests) == 1 + 6  # the address and the key are checked first
    rows = FeatureFiles(tmp_path / "clt").table()
    assert {row.feature: row.label for row in rows if row.label and not row.automatic} == own
    written = [row.feature for row in rows if row.label == "written system"]
    assert len(written) == 6
    assert len({feature.layer for feature in written}) > 1  # they are spread over the transcoder
    assert sum(row.automatic and row.label not in ("", "written system") for row in rows) > 6


@pytest.mark.slow
def test_a_service_that_fails_later_loses_no_record(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(lambda messages: "ready" if len(messages) == 1 else Raw(500)) as service:
        assert main([*command, "--label-endpoint", service.url, "--label-model", "small"]) == 0
    assert "small labelled 0 of " in capsys.readouterr().out
    assert sum(row.label != "" for row in FeatureFiles(tmp_path / "clt").table()) > 10


@pytest.mark.parametrize(
    ("answer", "named"),
    [(Raw(401), "OPENAI_API_KEY"), (Raw(404), "small"), (Raw(500), "500"), (Raw(body=b"<html>"), "completion")],
    ids=str,
)
def test_a_wrong_address_or_key_ends_the_command_before_anything_is_computed(
    answer: Raw, named: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(lambda _: answer) as service:
        options = ["--label-endpoint", service.url, "--label-model", "small"]
        # The transcoder does not exist, so an error that names the endpoint comes before it is loaded.
        missing = ["--transcoder", str(tmp_path / "missing")]
        assert_mistake(capsys, [*command, *options, *missing], service.url, named)
    assert_mistake(capsys, [*command, *options, *missing], service.url, "does not answer")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--label-model", "small"], "--label-endpoint"),
        (["--label-limit", "3"], "--label-endpoint"),
        (["--label-endpoint", "http://127.0.0.1:9/v1"], "--label-model"),
        (["--label-endpoint", "127.0.0.1:8000", "--label-model", "small"], "127.0.0.1:8000"),
        (["--label-endpoint", "http://h/v1?key=1", "--label-model", "small"], "without a name or a key"),
        (["--label-endpoint", "http://h/v1", "--label-model", "small", "--label-limit", "0"], "--label-limit"),
        (["--label-endpoint", "http://h/v1", "--label-model", "small", "--label-scorer", "mine"], "--label-scorer"),
        (["--label-endpoint", "http://h/v1", "--label-model", "small", "--label-key-env", "NOT_SET"], "NOT_SET"),
    ],
)
def test_mistakes_end_with_one_line(
    options: list[str], named: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, [*command, *options], named)


def test_a_key_in_place_of_a_variable_is_refused_and_not_shown(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--label-key-env", KEY]) == 2
    error = capsys.readouterr().err
    assert "--label-key-env" in error
    assert KEY not in error

"""A transcoder that is pushed is loaded from the hub with equal outputs, and nothing else is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from open_clt.config import CrossLayerConfig, ReLUConfig
from open_clt.errors import CheckpointError, ConfigError, HubRefusedError, HubUnreachableError
from open_clt.evaluation.report_file import save_reconstruction, save_report
from open_clt.publishing.local_paths import without_local_paths
from open_clt.publishing.push import publication, push_transcoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer
from open_clt.transcoders.formats.info import transcoder_info
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.faults.artefacts import report_of
from tests.hub import stand_in
from tests.hub.stand_in import Hub, serving
from tests.random_transcoders import random_architecture
from tests.refusals import refuses
from tests.transcoders.formats.test_own_files import WRITERS

REPO = "org/name"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that lets ``REPO`` be created, and a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving({}, monkeypatch, tmp_path / "cache") as served:
        served.creates[REPO] = tmp_path / "remote"
        yield served


def small(n_layers: int = 2, language_model: str | None = "openai-community/gpt2") -> Transcoder:
    config = CrossLayerConfig(
        n_layers=n_layers, d_model=4, n_features=6, nonlinearity=ReLUConfig(), language_model=language_model
    )
    return random_architecture(config)


def saved(folder: Path, transcoder: Transcoder | None = None) -> Path:
    return save_transcoder(transcoder or small(), folder)


def header(card: str) -> dict[str, object]:
    """The YAML header of a card."""
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("save", [save_transcoder, save_circuit_tracer])
def test_a_pushed_transcoder_has_equal_outputs(save: object, hub: Hub, tmp_path: Path) -> None:
    transcoder = small()
    save(transcoder, tmp_path / "local")  # type: ignore[operator]
    push_transcoder(tmp_path / "local", REPO)
    inputs = torch.randn(5, 2, 4)
    with torch.no_grad():
        outputs, expected = (load_transcoder(source)(inputs) for source in (REPO, tmp_path / "local"))
    assert torch.equal(outputs.reconstruction, expected.reconstruction)
    assert hub.authorizations == {"Bearer hf_secret"}
    assert hub.objects  # weights were sent through Git LFS
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "remote" / path.name).read_bytes() == path.read_bytes()


def test_only_files_of_the_transcoder_are_sent(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    save_report(report_of(1), folder)
    for name in ("checkpoints/last/state.safetensors", "metrics.csv", "notes.txt", ".env", "other.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    push_transcoder(folder, REPO)
    sent = {path.relative_to(tmp_path / "remote").as_posix() for path in (tmp_path / "remote").rglob("*.*")}
    report = {"evaluation.json", "evaluation.csv", "evaluation-totals.csv"}
    assert sent == {"README.md", "config.json", "transcoder.safetensors", *report}


def test_a_card_says_what_the_transcoder_is_and_how_it_is_used(tmp_path: Path) -> None:
    card = publication(saved(tmp_path), REPO, license="mit").card
    assert header(card) == {
        "library_name": "open-clt",
        "license": "mit",
        "base_model": "openai-community/gpt2",
        "tags": ["cross-layer-transcoder", "sparse-features", "interpretability"],
    }
    assert f'load_transcoder("{REPO}")' in card
    assert "circuit_tracer" not in card


def test_a_card_names_circuit_tracer_where_it_reads_the_layout(tmp_path: Path) -> None:
    save_circuit_tracer(small(), tmp_path)
    card = publication(tmp_path, REPO, revision="v1").card
    assert "circuit-tracer" in header(card)["tags"]  # type: ignore[operator]
    assert f'ReplacementModel.from_pretrained("openai-community/gpt2", "{REPO}@v1")' in card


@pytest.mark.parametrize("model", [None, "embedded", "/home/me/model", "models/here", "a b/c\n- d"])
def test_a_card_names_no_model_that_is_not_on_the_hub(
    model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/here").mkdir(parents=True)
    card = publication(saved(tmp_path / "local", small(language_model=model)), REPO).card
    assert "base_model" not in header(card)
    assert "/home/me" not in card


def test_a_card_has_the_numbers_of_the_report(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert "## Evaluation" not in publication(folder, REPO).card
    save_report(report_of(1), folder)
    assert "recovered" in publication(folder, REPO).card


def test_a_card_says_how_the_transcoder_was_trained(tmp_path: Path) -> None:
    record = {
        "settings": {"learning": {"steps": 3}},
        "steps": 1200,
        "tokens": 65536,
        "held_out": {"fvu": 0.125, "l0": 9},
    }
    save_transcoder(small(), tmp_path, record=record)
    save_reconstruction({"fvu": 0.5}, tmp_path, reason="no model")
    pushed = publication(tmp_path, REPO)
    assert "1,200 steps on 65,536 tokens" in pushed.card
    assert '"steps": 3' in pushed.card
    assert "| FVU | 0.125 |" in pushed.card
    assert "evaluation.json" not in pushed.paths


@pytest.mark.parametrize("record", [[], "x", {"settings": 3, "held_out": {"fvu": "low"}}, {"held_out": [1]}])
def test_a_record_of_another_form_is_left_out(record: object, tmp_path: Path) -> None:
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "record": record}))
    card = publication(tmp_path, REPO).card
    assert "## Training" not in card
    assert "## Evaluation" not in card


def test_a_report_of_another_transcoder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    save_report(report_of(1)._replace(settings={"n_layers": 3}), folder)
    with refuses(CheckpointError, "evaluation.json", "n_layers"):
        publication(folder, REPO)


def test_a_card_that_the_user_wrote_is_sent_as_it_is(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    (folder / "README.md").write_text("# Mine\n")
    push_transcoder(folder, REPO)
    assert (tmp_path / "remote/README.md").read_text() == "# Mine\n"
    (folder / "README.md").unlink()
    push_transcoder(folder, REPO)  # a card that was written on the hub stays, too
    assert (tmp_path / "remote/README.md").read_text() == "# Mine\n"


def test_our_card_is_replaced(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    push_transcoder(folder, REPO)
    (folder / "README.md").write_bytes((tmp_path / "remote/README.md").read_bytes())
    push_transcoder(folder, REPO, license="mit")
    assert header((tmp_path / "remote/README.md").read_text())["license"] == "mit"


def test_an_old_report_on_the_hub_is_deleted(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    save_report(report_of(1), folder)
    push_transcoder(folder, REPO)
    push_transcoder(saved(tmp_path / "new"), REPO)
    assert not list((tmp_path / "remote").glob("evaluation*"))


def test_weights_of_another_transcoder_on_the_hub_are_refused(hub: Hub, tmp_path: Path) -> None:
    save_circuit_tracer(small(3), tmp_path / "large")
    save_circuit_tracer(small(2), tmp_path / "small")
    push_transcoder(tmp_path / "large", REPO)
    before = {path.name: path.read_bytes() for path in (tmp_path / "remote").iterdir()}
    with refuses(HubRefusedError, REPO, "W_dec_2.safetensors"):
        push_transcoder(tmp_path / "small", REPO)
    assert {path.name: path.read_bytes() for path in (tmp_path / "remote").iterdir()} == before


def test_transcoders_in_other_folders_of_the_repository_stay(hub: Hub, tmp_path: Path) -> None:
    saved(tmp_path / "remote/older")
    hub.repositories[REPO] = tmp_path / "remote"
    push_transcoder(saved(tmp_path / "local", small(3)), REPO)
    assert load_transcoder(f"{REPO}/older").config.n_layers == 2
    assert load_transcoder(REPO).config.n_layers == 3


def test_a_branch_is_created(hub: Hub, tmp_path: Path) -> None:
    push_transcoder(saved(tmp_path / "local"), REPO, revision="v2")
    assert f"api/models/{REPO}/branch/v2" in hub.writes
    assert f"api/models/{REPO}/commit/v2" in hub.writes


def test_private_repositories(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    push_transcoder(folder, REPO, private=True)
    assert hub.private == {REPO}
    hub.private.clear()
    n_writes = sum("commit" in path for path in hub.writes)
    with refuses(HubRefusedError, REPO):  # a public repository is not a place for what must stay private
        push_transcoder(folder, REPO, private=True)
    assert sum("commit" in path for path in hub.writes) == n_writes


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_one_sentence(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.status_of_writes = status
    with refuses(HubRefusedError, REPO, status):
        push_transcoder(saved(tmp_path / "local"), REPO)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_has_trouble_is_one_sentence(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.status_of_writes = status
    with refuses(HubUnreachableError, REPO, status):
        push_transcoder(saved(tmp_path / "local"), REPO)


def test_a_refusal_of_weights_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.status_of_objects = 403
    with refuses(HubRefusedError, REPO, 403):
        push_transcoder(saved(tmp_path / "local"), REPO)
    assert not list((tmp_path / "remote").iterdir())


def test_a_card_that_the_hub_cannot_read_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    (folder / "README.md").write_text("INVALID")
    with refuses(HubRefusedError, REPO, "bad header"):
        push_transcoder(folder, REPO)


def test_no_token_and_no_network_are_one_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = saved(tmp_path / "local")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with refuses(HubUnreachableError, REPO, "http://127.0.0.1:9"):
        push_transcoder(folder, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refuses(HubUnreachableError, REPO, "HF_HUB_OFFLINE"):
        push_transcoder(folder, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with refuses(HubRefusedError, REPO, "HF_TOKEN"):
        push_transcoder(folder, REPO)
    assert hub.writes == []


@pytest.mark.parametrize(
    ("repo", "settings", "named"),
    [
        ("name", {}, "name"),
        ("org/name/folder", {}, "org/name/folder"),
        ("org/name@v1", {}, "org/name@v1"),
        (REPO, {"revision": "a b"}, "a b"),
        (REPO, {"revision": "../a"}, "../a"),
        (REPO, {"license": "My License"}, "My License"),
    ],
)
def test_names_that_the_hub_does_not_have(repo: str, settings: dict[str, str], named: str, tmp_path: Path) -> None:
    with refuses(ConfigError, named):
        publication(saved(tmp_path), repo, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["README.md", "evaluation.csv", "config.json"])
def test_a_link_to_a_file_elsewhere_is_not_sent(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "local")
    save_report(report_of(1), folder)
    secret = tmp_path / "secret"
    if (folder / name).exists():
        (folder / name).rename(secret)
    else:
        secret.write_text("secret")
    (folder / name).symlink_to(secret)
    with refuses(CheckpointError, name):
        publication(folder, REPO)


def test_a_transcoder_of_a_users_own_class_is_pushed_if_its_code_is_trusted(tmp_path: Path) -> None:
    own = OwnArchitecture("tests.training.own.Muffled", {"share": 0.25})
    folder = saved(tmp_path, make_transcoder(CrossLayerConfig(n_layers=2, d_model=4, n_features=20), own=own))
    with refuses(CheckpointError, "tests.training.own.Muffled"):
        publication(folder, REPO)
    assert f'load_transcoder("{REPO}", trust_code=True)' in publication(folder, REPO, trust_code=True).card


def test_an_autoencoder_is_called_so(tmp_path: Path) -> None:
    hook = "hook_resid_post"
    config = CrossLayerConfig(n_layers=2, d_model=4, n_features=20, reach=1, input_hook=hook, target_hook=hook)
    card = publication(saved(tmp_path, make_transcoder(config)), REPO).card
    assert "autoencoder" in card
    assert header(card)["tags"] == ["sparse-autoencoder", "sparse-features", "interpretability"]


def test_a_directory_without_a_transcoder_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", "~nobody-has-this-name/clt"):
        with refuses(CheckpointError, folder):
            publication(folder, REPO)
    folder = saved(tmp_path / "damaged")
    (folder / "transcoder.safetensors").write_bytes(b"damaged")
    with refuses(CheckpointError, "transcoder.safetensors"):
        publication(folder, REPO)


@pytest.mark.parametrize("write", WRITERS)
def test_a_transcoder_of_every_layout_is_pushed(write: Callable[[Path], object], hub: Hub, tmp_path: Path) -> None:
    write(tmp_path / "local")
    push_transcoder(tmp_path / "local", REPO)
    sent, local = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "remote", tmp_path / "local")
    )
    assert sent - {"README.md"} == local
    layout = transcoder_info(tmp_path / "local").layout
    assert transcoder_info(REPO).layout == layout


def test_no_path_of_the_users_machine_is_sent(hub: Hub, tmp_path: Path) -> None:
    settings = {"texts": {"source": "/home/me/my texts/wiki.txt"}, "model": "C:\\Users\\me\\gpt"}
    transcoder = small(language_model="/home/me/models/gpt2-mine")
    save_transcoder(transcoder, tmp_path / "local", record={"settings": settings, "steps": 3, "tokens": 4})
    report = report_of(1)
    measured_on = report.measured_on._replace(text="/home/me/other.txt")
    save_report(report._replace(measured_on=measured_on, settings={}), tmp_path / "local")
    before = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert any(b"/home/me" in content for content in before.values())
    assert set(publication(tmp_path / "local", REPO).changed) == {
        "config.json",
        "evaluation.json",
        "evaluation-totals.csv",
    }
    push_transcoder(tmp_path / "local", REPO)
    for path in (tmp_path / "remote").iterdir():
        assert b"/home/me" not in path.read_bytes(), path
        assert b"Users" not in path.read_bytes(), path
    assert {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()} == before
    loaded = load_transcoder(REPO)
    assert loaded.config.language_model == "gpt2-mine"
    assert "wiki.txt" in (tmp_path / "remote/README.md").read_text()


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ('{"a": "/data/my texts/x.txt", "b": 1}', '{"a": "x.txt", "b": 1}'),
        ("a: /data/x.txt\nb: '~/y z/w'\n", "a: x.txt\nb: 'w'\n"),
        ("1,/data/x.csv,2", "1,x.csv,2"),
        ("20 contexts of /data/x.txt, from 3", "20 contexts of x.txt, from 3"),
        ("file:///data/x and D:/me/y", "x and y"),
        ("tokens / s, 3/4, hf://org/name/x, https://a.b/c/d, org/name, a/b/c, mlp.hook_in", None),
        ('"/" and "~/"', None),
    ],
)
def test_paths_are_shortened_and_nothing_else(text: str, published: str | None) -> None:
    assert without_local_paths(text) == (text if published is None else published)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}"])
def test_a_server_that_is_not_a_hub_is_one_sentence(
    content: bytes, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "local")
    push_transcoder(folder, REPO)
    for method in ("_describe", "_create"):
        with monkeypatch.context() as patch:
            patch.setattr(stand_in._Handler, method, lambda handler, _: handler._answer(200, content, {}))
            with refuses(HubUnreachableError, REPO):
                push_transcoder(folder, REPO)
            if method == "_describe":
                with refuses(HubUnreachableError, REPO):
                    load_transcoder(REPO)


@pytest.mark.parametrize("method", ["do_PUT", "_commit"])
def test_a_connection_that_is_closed_half_way_is_one_sentence(
    method: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(handler: stand_in._Handler, *_: object) -> None:
        handler.close_connection = True

    monkeypatch.setattr(stand_in._Handler, method, close)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the attempts of huggingface_hub
    with refuses(HubUnreachableError, REPO):
        push_transcoder(saved(tmp_path / "local"), REPO)
    assert not list((tmp_path / "remote").iterdir())

"""``open-clt push``: a dry run prints the card and the files and sends nothing, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.config import MoltConfig, TopKConfig
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from tests.commands.mistakes import assert_mistake
from tests.hub.stand_in import serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = MoltConfig(n_layers=2, d_model=4, ranks=(2,), counts=(3,), nonlinearity=TopKConfig(k=2))
    return save_transcoder(make_transcoder(config), tmp_path / "local")


def test_a_dry_run_sends_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "org/name", "--dry-run", "--license", "mit"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("---\n")
    assert "license: mit" in printed
    rows = dict(line.split(maxsplit=1) for line in printed.splitlines()[-4:-1])
    assert set(rows) == {"README.md", "config.json", "transcoder.safetensors"}
    assert rows["config.json"] == f"{(folder / 'config.json').stat().st_size} bytes"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "transcoder.safetensors"]


def test_a_push_prints_the_address(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving({}, monkeypatch, tmp_path / "cache") as hub:
        hub.creates["org/name"] = tmp_path / "remote"
        assert main(["push", str(folder), "org/name", "--private", "--revision", "v1"]) == 0
        assert f"pushed: {hub.address}" in capsys.readouterr().out
        assert hub.private == {"org/name"}
        (tmp_path / "remote/README.md").write_text("# Written on the hub\n")
        assert main(["push", str(folder), "org/name"]) == 0
        assert "kept" in capsys.readouterr().out.splitlines()[0]
        hub.status_of_writes = 403
        assert_mistake(capsys, ["push", str(folder), "org/name"], "403", "org/name")


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["push", str(folder)], "ORG/NAME")
    assert_mistake(capsys, ["push", str(folder), "name", "--dry-run"], "'name'")
    assert_mistake(capsys, ["push", str(tmp_path), "org/name", "--dry-run"], tmp_path)
    assert_mistake(capsys, ["push", str(folder), "org/name", "--dry-run", "--license", "A B"], "'A B'")

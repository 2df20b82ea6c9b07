"""``open-clt features`` measures all features, writes their files, and shares a text among processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.features.feature_files import FeatureFiles
from open_clt.features.places import find_records, place_for_records
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.fingerprint import fingerprint
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.in_processes import run_in_processes
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS

TWO = ["--nproc-per-node", "2", "--standalone"]


@pytest.fixture
def folder(tiny_gpt2: LanguageModel, tmp_path: Path) -> Path:
    """A folder with the transcoder ``clt`` and a text."""
    save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "clt")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))
    return tmp_path


def command(folder: Path, model: Path, *more: str) -> list[str]:
    names = ["--model", str(model), "--transcoder", str(folder / "clt")]
    return ["features", *names, "--text", str(folder / "text.txt"), "--context-length", "12", *more]


@pytest.mark.slow
def test_records_are_written_beside_the_transcoder(
    folder: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tiny_gpt2_folder, "--max-tokens", "120", "--window", "6", "--top-examples", "3")) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert str(folder / "clt" / "features") in printed
    stored = FeatureFiles(folder / "clt")
    about = stored.about()
    assert about is not None
    assert (about.contexts, about.tokens, about.context_length, about.window) == (10, 110, 12, 6)
    assert (about.model, about.from_start) == (str(tiny_gpt2_folder), False)
    transcoder = load_transcoder(folder / "clt")
    assert about.transcoder_hash == fingerprint(transcoder)
    assert len(stored.features()) == transcoder.config.n_layers * transcoder.config.n_features
    record = max((stored.record(feature) for feature in stored.features()), key=lambda r: r.density if r else 0)
    assert record is not None
    assert len(record.examples) == 3
    assert all(len(example.tokens) == 6 for example in record.examples)
    # The directory is still a transcoder, and the command may be repeated.
    assert main(command(folder, tiny_gpt2_folder, "--max-tokens", "60")) == 0
    assert FeatureFiles(folder / "clt").about() != about


@pytest.mark.slow
def test_labels_and_pages_are_written_with_the_records(
    folder: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = folder / "labels.json"
    labels.write_text('{"L0/3": "my <b>label</b>"}')
    more = ["--max-tokens", "400", "--labels", str(labels), "--html", str(folder / "pages")]
    assert main(command(folder, tiny_gpt2_folder, *more)) == 0
    assert str(folder / "pages" / "index.html") in capsys.readouterr().out
    stored = FeatureFiles(folder / "clt")
    rows = {row.feature: row for row in stored.table()}
    assert (rows[Feature(0, 3)].label, rows[Feature(0, 3)].automatic) == ("my <b>label</b>", False)
    assert sum(row.automatic and row.label != "" for row in rows.values()) > 10
    assert "my <b>label" not in (folder / "pages" / "index.html").read_text()
    (folder / "theirs").mkdir()
    (folder / "theirs" / "index.html").write_text("mine")
    assert_mistake(capsys, command(folder, tiny_gpt2_folder, "--html", str(folder / "theirs")), folder / "theirs")
    labels.write_text('{"cat": 3}')
    assert_mistake(capsys, command(folder, tiny_gpt2_folder, "--labels", str(labels)), labels)


@pytest.mark.slow
def test_other_transcoders_keep_their_records_in_the_cache(
    folder: Path, tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_CLT_CACHE", str(folder / "cache"))
    transcoder = load_transcoder(folder / "clt")
    other = random_transcoder(tiny_gpt2, seed=8)
    place = place_for_records("org/name", transcoder)
    assert folder / "cache" in place.parents
    assert place != place_for_records(None, other)
    assert find_records("org/name", transcoder) is None
    assert main(command(folder, tiny_gpt2_folder, "--max-tokens", "60", "--output", str(place))) == 0
    found = find_records("org/name", transcoder)
    assert found is not None
    assert found.folder == place / "features"
    assert find_records(None, other) is None
    assert place_for_records(folder / "clt", transcoder) == folder / "clt"


def test_files_of_others_are_kept(folder: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = folder / "out" / "features" / "layer_0.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (mine.parent / ".open-clt.json").write_text('{"format": "open-clt-results", "format_version": 1, "files": []}')
    assert_mistake(capsys, command(folder, tiny_gpt2_folder, "--output", str(folder / "out")), mine.parent)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--window", "0"], "--window"),
        (["--top-examples", "many"], "--top-examples"),
        (["--max-tokens", "1"], "--max-tokens"),
        (["--seed", "0"], "--seed"),
        (["--split", "train"], "--split"),
        (["--column", "text"], "--column"),
        (["--text", "no-such-file.txt"], "no-such-file.txt"),
        (["--transcoder", "no-such-directory"], "no-such-directory"),
    ],
)
def test_mistakes_end_with_one_line(
    wrong: list[str], named: str, folder: Path, tiny_gpt2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, command(folder, tiny_gpt2_folder, *wrong), named)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder: Path, tiny_gpt2_folder: Path) -> None:
    single, shared = folder / "single", folder / "shared"
    # A batch has 4,096 tokens at most, and every process gets several batches.
    (folder / "text.txt").write_text("\n".join(TEXTS * 1500))
    for launcher, output in (([], single), (["-m", "torch.distributed.run", *TWO], shared)):
        arguments = command(folder, tiny_gpt2_folder, "--max-tokens", "20000", "--output", str(output))
        printed = run_in_processes([*launcher, "-m", "open_clt", *arguments])
        assert printed.count("written:") == 1
    names = sorted(path.name for path in (single / "features").iterdir())
    assert names == sorted(path.name for path in (shared / "features").iterdir())
    for name in names:
        assert (single / "features" / name).read_bytes() == (shared / "features" / name).read_bytes(), name
    record = FeatureFiles(shared).record(Feature(0, 0))
    assert record is not None
    assert record.density > 0

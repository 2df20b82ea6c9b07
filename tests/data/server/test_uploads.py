"""Uploads: files appear when they are whole, a dataset when all of it is there, and both go on where they stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from open_clt import files
from open_clt.data.dataset.manifest import MANIFEST, shard_name
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.statistics import STATISTICS
from open_clt.data.server.datasets import Datasets
from open_clt.data.server.uploads import Piece, Uploads
from tests.data.dataset.small_dataset import contents
from tests.data.server.uploading import append, begin, send_all, writer
from tests.faults.interrupted import Faults, Killed, faults_until_success

SHARD = shard_name(0)


@pytest.mark.slow
def test_a_dataset_appears_when_its_last_file_is_there_and_is_the_same(
    sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    answer = send_all(sender, source, STATISTICS)
    assert not answer.json()["complete"]
    assert sender.get("/datasets").json() == {"datasets": []}
    for file in (MANIFEST, SHARD):
        assert sender.get(f"/datasets/set/{file}").status_code == 404
    last = append(sender, STATISTICS, source[STATISTICS], 0, len(source[STATISTICS]))
    assert last.json()["complete"]
    assert [entry["name"] for entry in sender.get("/datasets").json()["datasets"]] == ["set"]
    assert contents(root / "set") == source
    assert [path.name for path in root.iterdir()] == ["set"]
    ActivationDataset(root / "set").verify()
    assert sender.get("/uploads/set").json()["complete"]
    assert begin(sender, source[MANIFEST]).json()["complete"]


@pytest.mark.parametrize("piece", [1, 100, 831])
def test_a_file_may_come_in_pieces(piece: int, sender: TestClient, root: Path, source: dict[str, bytes]) -> None:
    content = source[SHARD]
    begin(sender, source[MANIFEST])
    for first in range(0, len(content), piece) if piece > 1 else (0, 1):
        part = content[first : first + piece]
        entry = append(sender, SHARD, part, first, len(content)).json()["files"][0]
        assert entry["received"] == first + len(part)
    state = {entry["file"]: entry for entry in sender.get("/uploads/set").json()["files"]}
    assert set(state) == source.keys() - {MANIFEST}
    assert state[SHARD]["done"] == (piece > 1)
    assert state[STATISTICS] == {"file": STATISTICS, "received": 0, "done": False}


def test_an_upload_goes_on_with_another_server_of_the_directory(
    sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    send_all(sender, source, SHARD)
    append(sender, SHARD, source[SHARD][:500], 0, len(source[SHARD]))
    second = writer(root)
    state = {entry["file"]: entry for entry in begin(second, source[MANIFEST]).json()["files"]}
    assert (state[SHARD]["received"], state[SHARD]["done"]) == (500, False)
    assert append(second, SHARD, source[SHARD][500:], 500, len(source[SHARD])).json()["complete"]
    assert contents(root / "set") == source


def test_a_server_that_stopped_before_it_checked_the_last_bytes_checks_them_when_asked(
    sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    send_all(sender, source, SHARD)
    part = root / ".uploads" / "set" / f"{SHARD}.part"
    part.write_bytes(source[SHARD])
    state = {entry["file"]: entry for entry in sender.get("/uploads/set").json()["files"]}
    assert (state[SHARD]["received"], state[SHARD]["done"]) == (len(source[SHARD]), False)
    assert append(sender, SHARD, b"", len(source[SHARD]), len(source[SHARD])).json()["complete"]


@pytest.mark.parametrize("moment", ["before the manifest", "after the manifest"])
def test_a_server_that_stopped_before_it_showed_the_dataset_shows_it_when_asked(
    moment: str, sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    send_all(sender, source, SHARD)
    folder = root / ".uploads" / "set"
    (folder / SHARD).write_bytes(source[SHARD])
    if moment == "after the manifest":
        (folder / "upload.json").rename(folder / MANIFEST)
    assert begin(sender, source[MANIFEST]).json()["complete"]
    assert contents(root / "set") == source


def test_a_file_with_the_wrong_hash_is_deleted_and_can_be_sent_again(
    sender: TestClient, root: Path, source: dict[str, bytes]
) -> None:
    send_all(sender, source, SHARD)
    wrong = source[SHARD][:-1] + b"!"
    answer = append(sender, SHARD, wrong, 0, len(wrong))
    assert answer.status_code == 422
    assert SHARD in answer.json()["error"]
    assert not list((root / ".uploads" / "set").glob(f"{SHARD}*"))
    assert append(sender, SHARD, source[SHARD], 0, len(source[SHARD])).json()["complete"]


def test_one_request_at_a_time_changes_an_upload(root: Path, source: dict[str, bytes]) -> None:
    app = writer(root)
    uploads = Uploads(Datasets(root))
    with uploads.claimed("set"), pytest.raises(Exception, match="Another request"), uploads.claimed("set"):
        pass
    with uploads.claimed("set"), uploads.claimed("other"):
        pass
    with uploads.claimed("set"):
        begin(app, source[MANIFEST])
        assert uploads.check("set", SHARD, Piece(0, 8, 832)).name == f"{SHARD}.part"


def send_what_lacks(root: Path, source: dict[str, bytes]) -> None:
    """Begin an upload or go on with it, as a client does, with a server that has just started."""
    uploads = Uploads(Datasets(root))
    for file, received, done in uploads.begin("set", source[MANIFEST]).files:
        content, begin = source[file], received
        while not done:
            piece = Piece(begin, min(begin + 500, len(content)), len(content))
            with files.continuing(uploads.check("set", file, piece), begin) as append_bytes:
                append_bytes(content[piece.begin : piece.end])
            (state,) = uploads.received("set", file, piece).files
            begin, done = piece.end, state.done


@pytest.mark.slow
def test_a_server_may_be_killed_at_any_change_of_its_files(
    source: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, ("replace", "rename", "unlink", "rmdir", "write"))

    def upload_once(failing_call: int) -> bool:
        root = tmp_path / str(failing_call)
        root.mkdir()
        faults.arm(failing_call, Killed(), only_once=False)
        try:
            send_what_lacks(root, source)
            is_killed = False
        except Killed:
            is_killed = True
        faults.disarm()
        if (root / "set").exists():
            assert contents(root / "set") == source
        send_what_lacks(root, source)
        assert contents(root / "set") == source
        return not is_killed

    assert faults_until_success(upload_once) >= 30

"""Reading from ``open-clt serve``: with a token, with a server that is killed and restarted, and in training."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from open_clt.data.dataset import read
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.remote import server
from open_clt.errors import ServiceError
from tests.data.dataset.remote.served_dataset import assert_equal
from tests.data.server.processes import address_of, serving
from tests.refusals import refuses

TOKEN = "a-token-of-32-signs-for-this-test"


@pytest.mark.slow
def test_our_server_is_killed_and_restarted_in_an_epoch_and_changes_no_batch(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 120.0)
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    tokens.chmod(0o600)
    expected = list(read(local, 8, epochs=2, seed=1))
    with ExitStack() as servers:
        process = servers.enter_context(serving(local.parent, "--read-token-file", str(tokens)))
        address = address_of(process)
        with refuses(ServiceError, "401", server.TOKEN_VARIABLE):
            read(f"{address}/datasets/dataset", 8)
        monkeypatch.setenv(server.TOKEN_VARIABLE, TOKEN)
        remote = read(f"{address}/datasets/dataset", 8, epochs=2, seed=1)
        batches = iter(remote)
        got = list(islice(batches, 2))
        process.kill()
        process.wait()
        port = urlsplit(address).port
        assert port is not None
        servers.enter_context(serving(local.parent, "--read-token-file", str(tokens), port=port))
        assert_equal([*got, *batches], expected)
        ActivationDataset(f"{address}/datasets/dataset").verify()

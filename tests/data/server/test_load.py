"""Load: many readers at once read every byte right, while a dataset is uploaded."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from random import Random

import httpx
import pytest
from safetensors.torch import load

from open_clt.data.dataset.encoding import decode
from open_clt.data.dataset.manifest import read_manifest, shard_name
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import MemoryStore
from open_clt.data.server.client import target_of, upload
from tests.data.dataset.small_dataset import all_of, contents, write
from tests.data.server.processes import address_of, serving

READERS = 16
SECONDS = 8.0
TOKEN = "writing-token-of-tests"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems start processes in other ways")
def test_many_readers_at_once_read_every_byte_right(tmp_path: Path) -> None:
    directory = write(tmp_path / "root" / "set")
    with (directory / shard_name(0)).open("ab") as file:  # the server sends large files in several parts
        file.write(Random(0).randbytes(2**22))
    other = write(tmp_path / "other", seed=6)
    (tmp_path / "tokens").write_text(TOKEN)
    stored = contents(directory)
    whole = all_of(MemoryStore(list(ActivationDataset(directory))))
    names = [shard.file for shard in read_manifest(directory).shards]
    read, failures = [0] * READERS, list[BaseException]()

    def read_at_random(number: int, url: str) -> None:
        random, end = Random(number), time.monotonic() + SECONDS
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while time.monotonic() < end:
                name = random.choice(names)
                begin, last = sorted(random.choices(range(len(stored[name])), k=2))
                answer = client.get(f"/datasets/set/{name}", headers={"Range": f"bytes={begin}-{last}"})
                assert (answer.status_code, answer.content) == (206, stored[name][begin : last + 1])
                first, after = sorted(random.sample(range(71), 2))
                answer = client.get("/datasets/set/tokens", params={"begin": first, "end": after})
                assert decode(load(answer.content)).tokens.tolist() == whole.tokens[first:after].tolist()
                read[number] += last + 1 - begin

    def keep(number: int, url: str) -> None:
        try:
            read_at_random(number, url)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    with serving(
        tmp_path / "root", "--token-file", str(tmp_path / "tokens"), "--log-file", str(tmp_path / "log")
    ) as process:
        url = address_of(process)
        threads = [threading.Thread(target=keep, args=(number, url)) for number in range(READERS)]
        for thread in threads:
            thread.start()
        for number in range(3):
            upload(other, target_of(url, other, f"other-{number}"), token=TOKEN)
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(read) > 0
    assert contents(tmp_path / "root" / "other-2") == contents(other)
    assert {json.loads(line)["status"] for line in (tmp_path / "log").read_text().splitlines()} <= {200, 206}

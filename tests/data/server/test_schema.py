"""Requests that are made from the server's own description, legal ones and illegal ones, never meet a server error."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from open_clt.data.dataset.manifest import MANIFEST, shard_name
from open_clt.data.server.access import Access
from tests.data.server.serving import is_sentence, running, write_two
from tests.data.server.uploading import TOKEN, tree

EXAMPLES = 80
"""Number of requests for each address, each method, and each kind: legal and illegal."""
CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
"""What hypothesis does not complain about, since requests take time."""
NAMES = ("first", "second", "begun", "none")
FILES = (MANIFEST, "norm_stats.json", shard_name(0), shard_name(9))
RANGES = ("", "bytes=0-9", "bytes=5-", "bytes=9-5", "bytes=-0", "bytes 0-9/832", "bytes */832", "bytes 0-0/1", "bytes")


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_meets_an_error_of_the_server(mode: GenerationMode, tmp_path: Path) -> None:
    root = write_two(tmp_path / "root")
    before = tree(root)
    statuses: Counter[int] = Counter()
    with running(root, Access([TOKEN])) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [cast(Any, operation).ok() for operation in schema.get_all_operations()]
        assert len(operations) >= 8
        for operation in operations:
            send_many(operation.as_strategy(generation_mode=mode), statuses)
    assert {name: content for name, content in tree(root).items() if not name.startswith(".uploads")} == before
    assert {404, 422} <= statuses.keys()
    assert statuses[200] or mode == GenerationMode.NEGATIVE


def send_many(requests: st.SearchStrategy[Any], statuses: Counter[int]) -> None:
    """Send requests to an address; none meets an error, and each that is refused gets a sentence."""
    allowed = {"Authorization": f"Bearer {TOKEN.decode()}"}

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=CHECKS)
    @given(data=st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(requests)
        for name, values in (("name", NAMES), ("file", FILES)):  # else few requests would name what there is
            if name in case.path_parameters and data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(st.sampled_from(values))
        ranges = {name: data.draw(st.sampled_from(RANGES)) for name in ("Range", "Content-Range")}
        answer = case.call(headers={**allowed, **{name: value for name, value in ranges.items() if value}})
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (case, answer.text)
        if answer.status_code >= 400:
            assert is_sentence(answer.json()["error"]), (case, answer.text)

    with suppress(Unsatisfiable):  # no request to an address without parameters is illegal
        send()

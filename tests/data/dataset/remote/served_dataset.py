"""The dataset that the fixture ``served`` serves, and a comparison of batches."""

from __future__ import annotations

import torch

from open_clt.data.harvest import ActivationBatch
from tests.data.dataset.remote.static_server import StaticServer


def address_of(served: StaticServer) -> str:
    return f"{served.address}dataset"


def assert_equal(ours: list[ActivationBatch], theirs: list[ActivationBatch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(*fields) for fields in zip(one, other, strict=True))

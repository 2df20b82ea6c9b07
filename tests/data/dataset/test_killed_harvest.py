"""A harvest that is killed at any moment goes on with the same command, and its dataset is the same, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import HarvestedText
from open_clt.data.dataset.writer import write_dataset
from open_clt.language.language_model import LanguageModel
from tests.data.dataset.killing import Job, check_killed_jobs
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@pytest.fixture
def harvest(tiny_gpt2: LanguageModel) -> Job:
    """A harvest of eleven shards."""
    text = HarvestedText(source="texts", context_length=12)
    settings = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out", "tokens": 110, "shard_tokens": 10}
    harvested = harvest_settings(tiny_gpt2, text, seed=2, **settings)

    def job(directory: Path) -> None:
        write_dataset(store_of(tiny_gpt2, lambda: TEXTS * 10, harvested), harvested, directory)

    return job


@pytest.mark.slow
def test_a_killed_harvest_ends_as_if_it_had_not_been_killed(harvest: Job, tmp_path: Path) -> None:
    check_killed_jobs(harvest, tmp_path, range(1))


@pytest.mark.slow
def test_several_killed_harvests_end_as_if_they_had_not_been_killed(harvest: Job, tmp_path: Path) -> None:
    check_killed_jobs(harvest, tmp_path, range(1, 6))


@pytest.mark.soak
def test_many_killed_harvests_end_as_if_they_had_not_been_killed(harvest: Job, tmp_path: Path) -> None:
    check_killed_jobs(harvest, tmp_path, range(6, 36))

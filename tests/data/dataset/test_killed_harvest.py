"""A harvest that is killed at any moment goes on with the same command, and its dataset is the same, bit for bit.

A child process harvests, and kills itself (SIGKILL) at its n-th renaming of a file: a renaming ends every write.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest

from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import HarvestedText
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.dataset.writer import write_dataset
from open_clt.errors import CheckpointError
from open_clt.language.language_model import LanguageModel
from tests.data.dataset.small_dataset import contents
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
_RENAMINGS = 2 * 11 + 3
"""Renamings of a harvest of eleven shards: two for each, and those of the first state, statistics and manifest."""


def harvest(model: LanguageModel, directory: Path) -> None:
    text = HarvestedText(source="texts", context_length=12)
    settings = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out", "tokens": 110, "shard_tokens": 10}
    harvested = harvest_settings(model, text, seed=2, **settings)
    write_dataset(store_of(model, lambda: TEXTS * 10, harvested), harvested, directory)


def harvest_until_killed(model: LanguageModel, directory: Path, renaming: int) -> bool:
    """Harvest in a child process that kills itself before or after a renaming; return whether it was killed."""
    child = os.fork()
    if child == 0:
        replace, left = os.replace, renaming

        def deadly(*arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == 0 and renaming % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)  # pyright: ignore[reportArgumentType, reportCallIssue]
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = deadly  # pyright: ignore[reportAttributeAccessIssue]
        try:
            harvest(model, directory)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def check_killed_harvests(model: LanguageModel, folder: Path, seeds: range) -> None:
    """Kill harvests, each up to three times, and compare their ends with that of a harvest that is not killed."""
    harvest(model, folder / "whole")
    whole = contents(folder / "whole")
    for seed in seeds:
        random, directory = Random(seed), folder / f"run {seed}"
        assert harvest_until_killed(model, directory, random.randint(1, _RENAMINGS - 1)), seed
        for _ in range(2):
            with pytest.raises(CheckpointError):
                ActivationDataset(directory)
            if not harvest_until_killed(model, directory, random.randint(1, _RENAMINGS // 2)):
                break
            if (directory / "manifest.json").exists():
                break
        harvest(model, directory)
        assert contents(directory) == whole, seed
        ActivationDataset(directory).verify()


def test_a_killed_harvest_ends_as_if_it_had_not_been_killed(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    check_killed_harvests(tiny_gpt2, tmp_path, range(1))


@pytest.mark.slow
def test_several_killed_harvests_end_as_if_they_had_not_been_killed(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    check_killed_harvests(tiny_gpt2, tmp_path, range(1, 6))


@pytest.mark.soak
def test_many_killed_harvests_end_as_if_they_had_not_been_killed(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    check_killed_harvests(tiny_gpt2, tmp_path, range(6, 36))

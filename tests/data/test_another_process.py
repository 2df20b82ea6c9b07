"""Another process computes the batches of a harvest, bit for bit; it ends with its reader, and its end is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from open_clt.config import DataConfig, TextsConfig
from open_clt.data.another_process import InAnotherProcess
from open_clt.data.contexts import ContextStream, Place
from open_clt.data.harvest import Harvest
from open_clt.errors import ConfigError, ResourceError, TextError
from open_clt.language.language_model import LanguageModel
from open_clt.training.data.module import ActivationDataModule
from tests.refusals import refuses
from tests.tiny_models import TEXTS

HOOKS = ("hook_resid_mid", "hook_mlp_out")
READER = """
import sys, time
from functools import partial
from multiprocessing import active_children
from open_clt.data.another_process import InAnotherProcess
from open_clt.language.language_model import load_language_model
from tests.data.test_another_process import harvest_of
from tests.tiny_models import TEXTS

if __name__ == "__main__":
    harvest = harvest_of(load_language_model(sys.argv[1]), partial(list, TEXTS * 50))
    try:
        for batch in InAnotherProcess(harvest):
            print(active_children()[0].pid, flush=True)
            time.sleep(1000)
    except KeyboardInterrupt:
        pass
"""
"""A program that reads a batch and prints the id of the process that computes them."""


def harvest_of(model: LanguageModel, texts: Callable[[], list[str] | Iterator[str]]) -> Harvest:
    contexts = ContextStream(texts, model, 12, TextsConfig(held_out_contexts=2))
    return Harvest(model, contexts, input_hook=HOOKS[0], target_hook=HOOKS[1], batch_size=4)


def failing_texts() -> Iterator[str]:
    yield from TEXTS * 20
    raise TextError("The text ends in the middle.")


def test_texts_that_cannot_be_sent_are_refused_before_the_first_step(tiny_gpt2: LanguageModel) -> None:
    with refuses(ConfigError, "harvest_process"):
        InAnotherProcess(harvest_of(tiny_gpt2, lambda: TEXTS))


@pytest.mark.slow
def test_batches_are_the_same_from_every_place_on(tiny_gpt2: LanguageModel) -> None:
    harvest = harvest_of(tiny_gpt2, partial(list, TEXTS * 20))
    apart = InAnotherProcess(harvest)
    whole = list(harvest.read_from(Place()))
    assert len(whole) > 5
    for first in (0, 3):
        for ours, theirs in zip(apart.read_from(whole[first].place), whole[first:], strict=True):
            assert ours.place == theirs.place
            assert all(torch.equal(*fields) for fields in zip(ours.batch, theirs.batch, strict=True))
    contexts = torch.arange(120).view(10, 12) % tiny_gpt2.vocab_size
    packed = Harvest(tiny_gpt2, contexts, input_hook=HOOKS[0], target_hook=HOOKS[1], batch_size=4)
    for ours, theirs in zip(InAnotherProcess(packed), packed, strict=True):
        assert all(torch.equal(*fields) for fields in zip(ours, theirs, strict=True))
    assert not active_children()


@pytest.mark.slow
def test_training_gets_the_same_batches(tiny_gpt2: LanguageModel) -> None:
    harvest = harvest_of(tiny_gpt2, partial(list, TEXTS * 20))
    limit = 200 * 2 * tiny_gpt2.n_layers * tiny_gpt2.d_model * 4 / 1e9
    modules = [
        ActivationDataModule(
            harvest, DataConfig(batch_size=16, memory_limit=limit, harvest_process=apart, max_steps=40)
        )
        for apart in (False, True)
    ]
    assert modules[0].prepared.kept is None
    assert modules[0].state_dict() == modules[1].state_dict()  # either goes on with a run of the other
    for index, ((ours, first), (theirs, second)) in enumerate(
        zip(*(module.batches() for module in modules), strict=True)
    ):
        assert ours == theirs
        assert all(torch.equal(*fields) for fields in zip(first, second, strict=True))
        if index == 40:  # more than an epoch
            break
    for module in modules:
        module.release()
    assert not active_children()


@pytest.mark.slow
def test_a_process_that_ends_is_one_sentence(tiny_gpt2: LanguageModel) -> None:
    batches = iter(InAnotherProcess(harvest_of(tiny_gpt2, partial(list, TEXTS * 50))))
    next(batches)
    (process,) = active_children()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with refuses(ResourceError, "-9"):
        list(batches)
    with refuses(TextError, "The text ends in the middle."):
        list(InAnotherProcess(harvest_of(tiny_gpt2, failing_texts)))
    assert not active_children()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which processes run")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_its_reader(number: int, tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    """After Ctrl-C, which a terminal sends to both, only the reader may say something."""
    (tmp_path / "reader.py").write_text(READER)
    with subprocess.Popen(
        [sys.executable, "reader.py", str(tiny_gpt2_folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as reader:
        assert reader.stdout is not None
        child = Path("/proc", reader.stdout.readline().strip())
        assert child.is_dir()
        if number == signal.SIGKILL:
            reader.kill()
        else:
            os.killpg(reader.pid, number)
        assert "Traceback" not in reader.communicate()[1]
        for _ in range(600):
            if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
                return
            time.sleep(0.1)
        pytest.fail("the process still runs")

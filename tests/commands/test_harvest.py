"""``open-clt harvest`` writes a dataset, says its size first, goes on after a stop, and leaves other files alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.cli import main
from open_clt.commands import harvest as harvest_command
from open_clt.data.contexts import pack_contexts
from open_clt.data.dataset import writer
from open_clt.data.dataset.reader import ActivationDataset
from open_clt.data.harvest import ActivationBatch, MemoryStore, harvest
from open_clt.language.language_model import LanguageModel
from open_clt.processes import Processes
from tests.commands.in_processes import run_in_processes
from tests.commands.mistakes import assert_mistake
from tests.data.dataset.small_dataset import all_of, contents
from tests.tiny_models import TEXTS

SIZES = ["--tokens", "100", "--shard-tokens", "20", "--context-length", "12", "--seed", "3"]


@pytest.fixture
def command(tiny_gpt2_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A function from the name of the output to the command that harvests 100 tokens of a tiny model."""
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))

    def make(output: str, *more: str) -> list[str]:
        place = ["--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / output)]
        return ["harvest", "--model", str(tiny_gpt2_folder), *place, *SIZES, *more]

    return make


def test_the_dataset_holds_the_activations_of_the_model(
    command: Callable[..., list[str]], tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("out", "--dtype", "float32", "--hooks", "ln2.hook_normalized", "hook_resid_post")) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    size = 2 * tiny_gpt2.n_layers * tiny_gpt2.d_model * 4 + 8
    assert "100 tokens" in printed
    assert f"{size:,} bytes" in printed
    assert str(tmp_path / "out") in printed
    dataset = ActivationDataset(tmp_path / "out")
    dataset.verify()
    settings = dataset.manifest.harvested
    assert (settings.input_hook, settings.target_hook) == ("ln2.hook_normalized", "hook_resid_post")
    contexts = pack_contexts([(tmp_path / "text.txt").read_text()], tiny_gpt2, 12)
    expected = harvest(tiny_gpt2, contexts[:9], input_hook="ln2.hook_normalized", target_hook="hook_resid_post")
    read = all_of(MemoryStore(list(dataset)))
    assert not torch.equal(read.tokens, expected.tokens[:100])
    ours, theirs = table(read), table(expected.take(slice(100)))
    distances = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.amin(0).max()) < 1e-4
    assert float(distances.amin(1).max()) < 1e-4
    assert read.tokens.sort().values.tolist() == expected.tokens[:100].sort().values.tolist()


def table(batch: ActivationBatch) -> torch.Tensor:
    """One row for each token: inputs, targets, token id and position."""
    ids = torch.stack([batch.tokens, batch.positions], dim=1)
    return torch.cat([batch.inputs.flatten(1), batch.targets.flatten(1), ids], dim=1).double()


@pytest.mark.usefixtures("interruptible")
def test_the_same_command_goes_on_after_ctrl_c_and_then_has_nothing_to_do(
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(command("whole")) == 0
    write_shard = writer.write_shard

    def write_and_stop(directory: Path, index: int, *others: Any) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return write_shard(directory, index, *others)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", write_and_stop)
        assert main(command("out")) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "goes on" in error
    assert_mistake(capsys, command("out", "--seed", "4"), tmp_path / "out", "seed")
    text = (tmp_path / "text.txt").read_text()
    (tmp_path / "text.txt").write_text("One more word. " + text)
    capsys.readouterr()
    assert main(command("out")) == 2
    assert "changed" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text(text)
    assert main(command("out")) == 0
    assert "40 of 100 tokens" in capsys.readouterr().out
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "out") == whole
    assert main(command("out")) == 0
    assert "100 tokens" in capsys.readouterr().out
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_two_processes_write_what_one_writes(command: Callable[..., list[str]], tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for launcher, output in (([], "one"), (torchrun, "two")):
        printed = run_in_processes([*launcher, "-m", "open_clt", *command(output, "--shard-tokens", "7")])
        assert printed.count("\nwritten:") == printed.count("100 tokens of") == 1
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(two[name] == content for name, content in one.items() if name.startswith("shard"))
    ActivationDataset(tmp_path / "two").verify()
    printed = run_in_processes([*torchrun, "-m", "open_clt", *command("two", "--shard-tokens", "7")])
    assert printed.count("already") == 1


def test_a_dataset_of_the_embedded_model_needs_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["harvest", "--tokens", "300", "--dtype", "int8", "--output", str(output)]) == 0
    dataset = ActivationDataset(output)
    assert len(dataset) == dataset.statistics.tokens == 300
    assert dataset.manifest.harvested.text.from_start
    assert int(all_of(MemoryStore(list(dataset))).positions.max()) == 39


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--tokens", "0"], "--tokens"),
        (["--tokens", str(2**48)], "free"),
        (["--shard-tokens", "many"], "--shard-tokens"),
        (["--dtype", "int4"], "'int4'"),
        (["--hooks", "hook_resid_mid"], "--hooks"),
        (["--hooks", "hook_resid_mid", "hook_nothing"], "hook_nothing"),
        (["--hooks", "attn.hook_q", "hook_mlp_out"], "attn.hook_q"),
        (["--text", "no-such-file.txt"], "no-such-file.txt"),
        (["--model", "no-such-directory/model"], "no-such-directory/model"),
        (["--column", "other", "--text", "rows.jsonl"], "'other'"),
        (["--device", "abacus"], "abacus"),
        (["--output", "text.txt"], "text.txt"),
        (["--output", "theirs"], "notes.txt"),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(
    wrong: list[str],
    named: str,
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "The cat sat."}\n')
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    assert_mistake(capsys, command("out", *wrong), named)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes.txt"]


def test_a_command_without_an_output_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, ["harvest"], "--output")


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["harvest", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    options = "model text tokens output dtype hooks shard-tokens seed context-length column split device".split()
    assert [option for option in options if f"--{option}" not in printed] == []


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    third = Processes(6, 8, local_rank=2)
    named = ("cuda", "auto", "cuda:1", "cpu")
    assert [harvest_command._own_device(name, third) for name in named] == ["cuda:2", "cuda:2", "cuda:1", "cpu"]  # pyright: ignore[reportPrivateUsage]
    assert harvest_command._own_device("cuda", Processes()) == "cuda"  # pyright: ignore[reportPrivateUsage]

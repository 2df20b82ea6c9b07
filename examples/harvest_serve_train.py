"""Harvest, serve, train, evaluate: a transcoder of the embedded model, trained on activations from a server.

    pip install 'open-clt[server]'
    python examples/harvest_serve_train.py --directory runs/served

The script runs these commands, which work in the same way with any language model, and on several machines:

1. ``open-clt harvest`` writes the activations of the embedded model on generated sentences to the disk.
2. ``open-clt serve`` offers them on a free port of this computer, until the training is done.
3. ``open-clt train --data.path URL`` trains a cross-layer transcoder on them, without a language model.
4. ``open-clt evaluate`` measures the transcoder in the language model, on sentences that it was not trained on.

With the default settings this takes a few minutes on two CPU cores. The dataset takes 2,568 bytes a token.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TOKENS, STEPS = 200_000, 600
SEED = 500_000_001
HELD_OUT_SEED = 500_000_002


def open_clt(*arguments: object) -> list[str]:
    """The command line of a command of OpenCLT."""
    return [sys.executable, "-m", "open_clt", *map(str, arguments)]


def harvest(directory: Path, tokens: int) -> None:
    """Write the activations; a harvest that was stopped goes on."""
    shard = max(1, tokens // 16)
    subprocess.run(
        open_clt("harvest", "--tokens", tokens, "--shard-tokens", shard, "--seed", SEED, "--output", directory),
        check=True,
    )


@contextmanager
def serving(directory: Path) -> Generator[str]:
    """Serve the datasets in a directory in a process of its own, and give the address of the server."""
    command = open_clt("serve", directory, "--port", 0, "--log-file", directory / "server.log")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None, "it is a pipe"
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            if address is None:
                raise SystemExit("The server did not start.")
            yield address[0]
        finally:
            server.terminate()


def train(url: str, output: Path, steps: int) -> None:
    """Train a transcoder on the dataset at an address."""
    settings = {
        "--data.path": url,
        "--data.order": "random",
        "--transcoder.n_features": 512,
        "--transcoder.nonlinearity.kind": "batchtopk",
        "--transcoder.nonlinearity.k_share": 0.03,
        "--training.learning_rate": 2e-3,
        "--training.initial_firing_rate": 0.02,
        "--trainer.max_steps": steps,
        "--output": output,
    }
    subprocess.run(open_clt("train", *(part for pair in settings.items() for part in pair)), check=True)


def evaluate(transcoder: Path, output: Path) -> None:
    """Measure the transcoder in the language model, on other sentences."""
    command = open_clt("evaluate", "--transcoder", transcoder, "--seed", HELD_OUT_SEED, "--graphs", 0)
    subprocess.run([*command, "--output", str(output)], check=True)


def main() -> None:
    """Run the four commands one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("served"), help="directory for all files")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"tokens to harvest (default: {TOKENS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    arguments = parser.parse_args()
    datasets, runs = arguments.directory / "datasets", arguments.directory / "runs"
    harvest(datasets / "sentences", arguments.tokens)
    with serving(datasets) as address:
        train(f"{address.rstrip('/')}/datasets/sentences/", runs / "clt", arguments.steps)
    evaluate(runs / "clt", runs / "evaluation")


if __name__ == "__main__":
    main()

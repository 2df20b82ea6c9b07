"""Tasks of the processes in test_divided_dataset.py: two processes train together on one dataset."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist

from open_clt.config import TopKConfig
from open_clt.errors import CheckpointError
from open_clt.training.run import OwnParts
from tests.training.data.stored_run import TOO_SMALL, train
from tests.training.synthetic import small_transcoder


class Watch(Callback):
    """Collects the ids of all tokens that this process trains on, and crashes before a given step."""

    def __init__(self, crash: int | None = None) -> None:
        self.tokens: list[int] = []
        self._crash = crash

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._crash:
            raise RuntimeError("power cut")
        self.tokens += batch.tokens.tolist()


def divide(data: str, folder: str, memory_limit: float = TOO_SMALL) -> dict[str, Any]:
    """Train once without a break, and once with a crash; return the tokens, and the losses and weights of both runs."""

    def run(name: str, watch: Watch, resume: str | None = None) -> list[Any]:
        own = OwnParts(callbacks=[watch], trainer={"devices": 2, "strategy": "ddp"})
        settings: dict[str, Any] = {"memory_limit": memory_limit, "every": 7, "best": False, "epochs": 4}
        config = small_transcoder(nonlinearity=TopKConfig(k=4))
        result = train(
            data, transcoder=config, own=own, output_dir=Path(folder) / name, resume=resume, order="random", **settings
        )
        return [result.curves.loss, float(result.transcoder.W_enc.double().sum()), result.steps]

    cast(Any, rank_zero_only).rank = dist.get_rank()  # Lightning was imported before the process had a rank
    watch = Watch()
    whole = run("whole", watch)
    with suppress(RuntimeError):
        run("crashed", Watch(crash=31))
    return {"tokens": watch.tokens, "whole": whole, "resumed": run("crashed", Watch(), resume="last")}


def resume_alone(data: str, folder: str) -> str:
    """Resume the run of two processes with one process; return the error."""
    try:
        train(data, output_dir=Path(folder) / "whole", resume="last", memory_limit=TOO_SMALL, epochs=4, order="random")
    except CheckpointError as error:
        return str(error)
    return ""

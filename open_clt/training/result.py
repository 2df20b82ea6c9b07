"""The result of a training run: the transcoder, its numbers, and what they cost."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from open_clt.training.data import HarvestCost
from open_clt.training.step.module import Curves
from open_clt.transcoders.metrics import TranscoderMetrics
from open_clt.transcoders.transcoder import Transcoder


class TrainingResult(NamedTuple):
    """What came out of a training run."""

    transcoder: Transcoder
    """The folded transcoder, which reads and writes raw activations: the one that is saved.

    It is whole on the first process; another process that holds a slice of the features has that slice.
    """
    curves: Curves
    metrics: TranscoderMetrics | None
    """Numbers on held-out tokens; None if none were held out."""
    dead_share: float
    """Share of features that were silent over the last ``dead_after_tokens`` tokens of training."""
    steps: int
    tokens: int
    """Tokens trained on, repeated ones included."""
    seconds: float
    finished: bool
    """False if the run stopped before its last step."""
    harvest: HarvestCost
    """What the activations cost."""
    first: bool = True
    """Whether this process is the first of those that trained: the one that saves and reports."""
    held_out: Int[Tensor, "context position"] | None = None
    """Contexts that were not trained on; None if activations came from a store."""

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-ready: the record that is stored beside the weights."""
        held_out = self.metrics and self.metrics.as_dict()
        kept = {name: getattr(self, name) for name in ("dead_share", "steps", "tokens", "seconds", "finished")}
        harvest = {**self.harvest._asdict(), "share": self.harvest.share}
        return {**kept, "harvest_seconds": harvest, "held_out": held_out, "curves": self.curves._asdict()}

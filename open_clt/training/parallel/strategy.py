"""Training on several processes: features sharded over some of them, batches split over others, or both.

The processes form a mesh, batch x features. Those of one row see the same tokens, and each holds a slice of every
layer's features: encoder rows, thresholds, decoder rows, and their Adam moments. Those of one column hold the same
slice, and each sees its part of the batch. A step then is

    encode      with no communication: each process has all inputs of its tokens
    select      TopK: the k best of each slice are gathered, values only. BatchTopK: the value of the last one that is
                selected is found by counting, digit by digit, over all slices and all tokens
    decode      each slice writes; ONE all-reduce sums the reconstructions. (One more for AuxK where features are dead,
                and one for each Matryoshka prefix.)
    backward    every process of a row has the same reconstruction, so the same loss, and the gradient of its own
                features follows without communication. Copies of what is no feature's (decoder biases, skip paths)
                get equal gradients and stay equal
    update      clipping needs the norm over all slices: one number. Columns average gradients (DDP, as ever)

so that sharding costs the traffic of activations, and splitting batches costs that of gradients: docs/scaling.md has
the arithmetic. Losses are those of one process up to rounding (tests/training/parallel/test_strategy.py).

What is used, and what is not. DeviceMesh makes the groups and DTensor the collectives within a row, since it knows that
the gradient of a sum over shards is the identity. The parameters themselves are plain tensors, because a slice of the
features is a smaller transcoder: every line of the model, and every custom gradient in it, works on it as it stands,
where DTensor has no rule for them (``embedding_bag`` with weights has none). For the same reason the strategy is
Lightning's DDPStrategy with a mesh, and not its ModelParallelStrategy: that one expects DTensor parameters, averages no
gradients outside FSDP, and its checkpoints are pickles.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.parallel.shards import is_copied, shard_path
from open_clt.transcoders.slices import ALONE, Part, Peers
from open_clt.transcoders.transcoder import Transcoder

BATCH, FEATURES = "batch", "features"
_DIGITS = (20, 9, 0)
"""Where the digits of a positive float's 31 bits begin, read as an integer; the last overlaps the one before."""
_DIGIT_VALUES = 2048


@final
class MeshPeers(Peers):
    """The other processes of a mesh, batch x features."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._batch, self._features = mesh[BATCH], mesh[FEATURES]
        self.shards = self._features.size()
        self.shard = self._features.get_local_rank()
        self.replicas = self._batch.size()

    def __deepcopy__(self, memo: dict[int, Any]) -> MeshPeers:
        return self  # a copy of a transcoder has the same peers

    def sum_features(self, partial: Tensor) -> Tensor:
        return _summed(partial, self._features)

    def sum_batch(self, partial: Tensor) -> Tensor:
        return _summed(partial.detach(), self._batch)

    def gather(self, part: Tensor) -> list[Tensor] | None:
        part = part.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.shards)] if self.shard == 0 else None
        dist.gather(part, parts, group=self._features.get_group(), group_dst=0)
        return parts and [one.cpu() for one in parts]

    @torch.no_grad()
    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        ours = values.shape[1]
        candidates = functional.pad(values.detach(), (0, k - ours), value=-torch.inf)
        every = DTensor.from_local(candidates, self._features, [Shard(1)], run_check=False).full_tensor()
        # A stable sort, not topk: every process must come to the same decision.
        chosen = every.sort(dim=1, descending=True, stable=True).indices[:, :k]
        won = torch.zeros_like(every, dtype=torch.bool).scatter_(1, chosen, True)
        return won[:, self.shard * k : self.shard * k + ours]

    @torch.no_grad()
    def kth_largest(self, values: Float[Tensor, "some"], k: int) -> Float[Tensor, ""]:
        """A search digit by digit: what is sent is three histograms, however many values there are."""
        bits = values.detach().float().clamp(min=0).view(torch.int32)  # as integers, positive floats keep their order
        found = 0
        for shift in _DIGITS:
            digits = (bits >> shift) & (_DIGIT_VALUES - 1)
            counts = self.sum_features(self.sum_batch(torch.bincount(digits, minlength=_DIGIT_VALUES)))
            or_larger = functional.pad(counts.flip(0).cumsum(0).flip(0), (0, 1))
            k = min(k, int(or_larger[0]))
            if k == 0:
                return values.new_zeros(())
            digit = int((or_larger >= k).nonzero().max())
            k -= int(or_larger[digit + 1])
            bits = bits[digits == digit]
            found |= digit << shift
        return torch.tensor(found, dtype=torch.int32).view(torch.float32).to(values.device, values.dtype)


def _summed(partial: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over a line of processes; going back, each gets the gradient of the sum, which is that of its part."""
    if mesh.size() == 1:
        return partial
    spread = DTensor.from_local(partial, mesh, [Partial()], run_check=False)
    return spread.redistribute(placements=[Replicate()]).to_local()


@torch.no_grad()
def clip_gradients(transcoder: Transcoder, limit: float) -> None:
    """Scale gradients so that their norm over all features, wherever they are, is at most ``limit``."""
    ours: list[Tensor] = []
    copied: list[Tensor] = []
    for name, parameter in transcoder.named_parameters():
        if parameter.grad is not None:
            (copied if is_copied(name) else ours).append(parameter.grad)
    squares = transcoder.peers.sum_features(get_total_norm(ours).square())
    norm = (squares + get_total_norm(copied).square()).sqrt()
    clip_grads_with_norm_(transcoder.parameters(), limit, norm)


class BatchShare(NamedTuple):
    """Which tokens of a batch a process takes: every ``parts``-th one, from number ``part`` on."""

    part: int
    parts: int

    def of(self, batch: ActivationBatch) -> ActivationBatch:
        """Its tokens of a batch; raises ConfigError if it cannot be split evenly."""
        if batch.size % self.parts:
            raise ConfigError(f"batch_size is {batch.size}; split over {self.parts}, it must divide by {self.parts}.")
        return batch if self.parts == 1 else batch.take(torch.arange(self.part, batch.size, self.parts))


def batch_share(trainer: Trainer | None) -> BatchShare:
    """This process's share of every batch, as Lightning's strategy deals them out."""
    dealt = trainer and trainer.distributed_sampler_kwargs
    return BatchShare(dealt["rank"], dealt["num_replicas"]) if dealt else BatchShare(0, 1)


def peers_of(trainer: Trainer) -> Peers:
    """The processes that a trainer trains with, once they are there; raises ConfigError for other ways to share."""
    strategy = trainer.strategy
    if isinstance(strategy, FeatureParallelStrategy):
        return MeshPeers(strategy.mesh)
    if trainer.world_size == 1:
        return ALONE
    if not isinstance(strategy, DDPStrategy):
        raise ConfigError(
            f"trainer.strategy is {type(strategy).__name__}; several processes train a transcoder by ddp (batches "
            "split) or by open_clt.training.parallel.FeatureParallelStrategy (features sharded, or both)."
        )
    return MeshPeers(make_mesh(strategy.root_device, trainer.world_size, shards=1))


def make_mesh(device: torch.device, processes: int, *, shards: int) -> DeviceMesh:
    """All processes as a mesh, batch x features; the slices of one transcoder have neighbouring ranks (one machine)."""
    if processes % shards:
        raise ConfigError(f"{processes} processes cannot be split into groups of {shards}; change one of the two.")
    return init_device_mesh(device.type, (processes // shards, shards), mesh_dim_names=(BATCH, FEATURES))


@final
class FeatureParallelStrategy(DDPStrategy):
    """Shards features over ``tensor_parallel_size`` processes, and splits batches over groups of so many.

    Give it to Lightning's Trainer. None is all processes: one batch, nothing but sharding. A checkpoint to resume from
    is a directory with one part for each slice; ``merge_checkpoint`` makes one transcoder of them.
    """

    def __init__(
        self,
        tensor_parallel_size: int | None = None,
        *,
        process_group_backend: str | None = None,
        timeout: float = 1800,
    ) -> None:
        """``timeout`` is how many seconds a process waits for the others; the backend is NCCL on GPUs, gloo on CPUs."""
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout))
        self.tensor_parallel_size = tensor_parallel_size

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether slices are made before they are loaded."""
        return True  # there are no slices to load into before

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which part of a batch this process takes."""
        batch = self.mesh[BATCH]
        return {"num_replicas": batch.size(), "rank": batch.get_local_rank()}

    def setup_environment(self) -> None:
        """Start the processes' groups."""
        super().setup_environment()
        self.slice = self.part(self.global_rank, self.world_size)
        self.mesh = make_mesh(self.root_device, self.world_size, shards=self.slice.shards)

    def part(self, rank: int, processes: int) -> Part:
        """Which features a process of so many holds; known before they start."""
        shards = self.tensor_parallel_size or processes
        return Part(rank % shards, shards)

    def configure_ddp(self) -> None:
        """Average gradients within the columns of the mesh; a single row has none to average."""
        if self.mesh[BATCH].size() > 1:
            # Buffers agree as it is: what they count is summed over all processes.
            self._ddp_kwargs |= {"process_group": self.mesh[BATCH].get_group(), "broadcast_buffers": False}
            super().configure_ddp()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save each slice once, by the first process that holds it."""
        if self.mesh[BATCH].get_local_rank() == 0:
            self.checkpoint_io.save_checkpoint(checkpoint, shard_path(filepath, *self.slice))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this process's slice; raises CheckpointError if it is missing, or not of the step of the others."""
        checkpoint = self.checkpoint_io.load_checkpoint(shard_path(checkpoint_path, *self.slice))
        step = self.broadcast(checkpoint["global_step"])
        if checkpoint["global_step"] != step:
            raise CheckpointError(
                f"Slice {self.slice[0]} of {checkpoint_path} is of step {checkpoint['global_step']}, the first of step "
                f"{step}: saving was interrupted, so they belong to different trainings."
            )
        return checkpoint

"""Training on several processes: features sharded over some of them, batches split over others."""

from open_clt.training.parallel.shards import merge_checkpoint
from open_clt.training.parallel.strategy import FeatureParallelStrategy

__all__ = ["FeatureParallelStrategy", "merge_checkpoint"]

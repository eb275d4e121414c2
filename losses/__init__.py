"""The objective: cross-entropy, contrastive and SGLD terms, and their weighted sum."""

from losses.contrastive import Contrastive, ContrastScore
from losses.cross_entropy import CrossEntropy
from losses.objective import BatchLoss, Metrics, Objective, Step, batch_loss
from losses.queue import LogitQueue
from losses.sgld import ConditionalSGLD, MarginalSGLD, ReplayBuffer, from_shards, langevin, shard

__all__ = [
    "BatchLoss",
    "ConditionalSGLD",
    "ContrastScore",
    "Contrastive",
    "CrossEntropy",
    "LogitQueue",
    "MarginalSGLD",
    "Metrics",
    "Objective",
    "ReplayBuffer",
    "Step",
    "batch_loss",
    "from_shards",
    "langevin",
    "shard",
]

"""The objective: cross-entropy, contrastive and SGLD terms, and their weighted sum."""

from losses.contrastive import Contrastive, ContrastScore
from losses.cross_entropy import CrossEntropy
from losses.objective import Metrics, Objective, Step
from losses.queue import LogitQueue
from losses.sgld import ConditionalSGLD, MarginalSGLD, ReplayBuffer, langevin

__all__ = [
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
    "langevin",
]

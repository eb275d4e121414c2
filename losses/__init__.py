"""The objective: cross-entropy, contrastive and SGLD terms, and their weighted sum."""

from losses.contrastive import Contrastive, ContrastScore
from losses.cross_entropy import CrossEntropy
from losses.objective import BatchLoss, Build, Metrics, Objective, Step, build_objective
from losses.queue import LogitQueue
from losses.sgld import Chain, ConditionalSGLD, MarginalSGLD, ReplayBuffer, langevin
from losses.start import GaussianStart, Start, UniformStart, new_start

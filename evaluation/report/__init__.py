"""A run folder as one self-contained HTML page. Standard library alone: no torch, no matplotlib."""

from evaluation.report.page import page
from evaluation.report.run import NoRun, Run, read_run

__all__ = ["NoRun", "Run", "page", "read_run"]

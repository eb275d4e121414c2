"""A run folder as one self-contained HTML page. No torch, no matplotlib."""

from reports.page.page import page
from reports.page.run import NoRun, Run, read_run

__all__ = ["NoRun", "Run", "page", "read_run"]

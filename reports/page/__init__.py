"""A run folder as one self-contained HTML page. No torch, no matplotlib."""

from reports.page.page import comparison, page
from reports.page.run import NoRun, Run, read_run

__all__ = ["NoRun", "Run", "comparison", "page", "read_run"]

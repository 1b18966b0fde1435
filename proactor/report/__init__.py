"""The report of a run, or of several: self-contained HTML."""

from proactor.report.folders import rebuild_report, together, write_page
from proactor.report.page import build_report

__all__ = ["build_report", "rebuild_report", "together", "write_page"]

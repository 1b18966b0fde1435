"""The report of a run, or of two: self-contained HTML."""

from proactor.report.folders import rebuild_report, side_by_side, write_page
from proactor.report.page import build_report

__all__ = ["build_report", "rebuild_report", "side_by_side", "write_page"]

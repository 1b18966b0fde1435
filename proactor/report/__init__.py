"""The report of a run, or of two: self-contained HTML."""

from proactor.report.page import build_report, read_history, rebuild_report, side_by_side, write_page

__all__ = ["build_report", "read_history", "rebuild_report", "side_by_side", "write_page"]

"""Tables to one self-contained HTML file."""

from __future__ import annotations

from xfelproc.report.page import FrameView, ReportData, build_report
from xfelproc.report.summary import RunSummary

__all__ = ["FrameView", "ReportData", "RunSummary", "build_report"]

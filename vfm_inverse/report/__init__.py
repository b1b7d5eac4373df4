"""One HTML page that says whether a posterior is calibrated, and its figures."""

from vfm_inverse.report.page import write_report

__all__ = ["write_report"]

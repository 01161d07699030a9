"""What a check found, for people: a table, JSON, and a page with charts."""

from parity.report.report import Report

__all__ = ["Report"]

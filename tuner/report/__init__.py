"""The report on a sweep: records in; a page, a picture and tables out. Runs on the driver, without torch or ray."""

from tuner.report.writing import write_report

__all__ = ["write_report"]

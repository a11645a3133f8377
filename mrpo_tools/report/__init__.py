"""`mrpo report`: runs as one page that needs nothing else, and as pictures. No torch."""

from mrpo_tools.report.write import report

__all__ = ["report"]

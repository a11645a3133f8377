"""What runs measured, read from their directories, grouped into methods and compared; no torch."""

from mrpo_tools.results.compare import NOT_COMPARABLE, Comparison, compare
from mrpo_tools.results.formats import FORMATS, render
from mrpo_tools.results.methods import MethodRuns, by_method
from mrpo_tools.results.read import Result, plain_names, read_results

__all__ = [
    "FORMATS",
    "NOT_COMPARABLE",
    "Comparison",
    "MethodRuns",
    "Result",
    "by_method",
    "compare",
    "plain_names",
    "read_results",
    "render",
]

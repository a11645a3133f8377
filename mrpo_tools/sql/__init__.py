"""SQL over a cache: views of its rows, the references' mathematics as macros, read-only.

A cache is opened once and asked many times:

    with open_sql("cache") as database:
        table = database.query("SELECT reference, avg(logp) FROM logps GROUP BY reference")
        write(table, "csv", Path("means.csv"))

The files, in the order in which a query meets them:

    rows       verified files, every row once          stored     the same as data sets
    runs       run directories as data sets            names      what references are called
    views      what there is to read                   macros     the references' mathematics
    sandbox    what a query may do                     database   the cache, opened
    saved      queries worth keeping                   formats    results as text or Parquet
    apart      a query in a process of its own
"""

from mrpo_tools.sql.database import DEFAULT_MEMORY, DEFAULT_TIMEOUT, Database, open_sql
from mrpo_tools.sql.formats import FORMATS, write
from mrpo_tools.sql.macros import MACROS
from mrpo_tools.sql.saved import SAVED, find_saved
from mrpo_tools.sql.views import VIEWS

__all__ = [
    "DEFAULT_MEMORY",
    "DEFAULT_TIMEOUT",
    "FORMATS",
    "MACROS",
    "SAVED",
    "VIEWS",
    "Database",
    "find_saved",
    "open_sql",
    "write",
]

"""Anything -> groups: where data is found, read, understood and checked.

    locate   the user's word -> files, a folder, a hub data set (and `known` names)
    text     .jsonl .json .gz .zst -> numbered rows   \\
    tables   .parquet              -> numbered rows    > `rows.Row` or `rows.Problem`
    hub      `datasets`            -> numbered rows   /
    detect   columns -> adapter; `catalogue` is the table of adapters
    pairs, scored  the adapters: a row -> prompt and responses, by `conversation` and `fields`
    splits   which prompts are held out
    checks   a prompt and responses -> a group, or problems
    summary  what the groups of a source are like; `export`, `write` them in other forms
    stream   all of it in order, with splits and counts; `load` into memory
"""

from mrpo_tools.sources.adapters.catalogue import ADAPTERS
from mrpo_tools.sources.known import KNOWN
from mrpo_tools.sources.load import Source, load_dataset, load_groups
from mrpo_tools.sources.stream import COUNTS, GroupStream, Options

__all__ = [
    "ADAPTERS",
    "COUNTS",
    "KNOWN",
    "GroupStream",
    "Options",
    "Source",
    "load_dataset",
    "load_groups",
]

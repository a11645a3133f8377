"""Anything -> groups: where data is found, read, understood and checked.

locate    the user's word -> files, a folder, a hub data set (and `known` names)
readers/  files and data sets -> numbered rows, or problems with their place
columns   rows under the names that adapters know (`--map`)
adapters/ rows -> prompts and responses; which adapter is detected by the columns
checks    a prompt and responses -> a group, or problems; what is unusual about groups
splits    which prompts are held out; `draws` reads the data again for another draw
stream    all of it in order, with splits and counts; `load` into memory
summary   what the groups of a source are like; `export`, `write` them in other forms
"""

from mrpo_tools.sources.adapters.catalogue import ADAPTERS
from mrpo_tools.sources.checks import COUNTS
from mrpo_tools.sources.draws import Draws, check_drawn
from mrpo_tools.sources.known import KNOWN
from mrpo_tools.sources.load import Source, load_dataset, load_groups, read_rows
from mrpo_tools.sources.stream import GroupStream, Options

__all__ = [
    "ADAPTERS",
    "COUNTS",
    "KNOWN",
    "Draws",
    "GroupStream",
    "Options",
    "Source",
    "check_drawn",
    "load_dataset",
    "load_groups",
    "read_rows",
]

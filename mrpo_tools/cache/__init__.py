"""The store of log-probs, scores and verdicts: immutable, content-addressed Parquet parts.

    cache/
      groups/<dataset>-<sha256 of the bytes, 16 hex>.parquet      the data
      references/<name>-<identity, 12 hex>/identity.json          written first, never changed
      references/<name>-<identity, 12 hex>/part-<sha256, 16 hex>.parquet
      scores/<name>-<identity, 12 hex>/…                          the same of scorers
      verdicts/<name>-<identity, 12 hex>/…                        the same of judges

A file's name carries the hash of its bytes, so the directory listing is the truth: there is no
index to corrupt and no lock to hold. A writer writes to a temporary name, flushes it to the disk
and renames it; two writers cannot collide, and a killed one leaves nothing that is read. Every
byte is hashed at every read.

    files.py      a file that appears whole under the hash of its bytes, or not at all
    records.py    what the writer of a part says of itself
    parts.py      kinds of rows, and one part of them
    store_of_parts.py    the parts of one identity, of any kind
    reference.py  scores.py  verdicts.py    what is particular to each kind
    writer.py     rows on their way into parts
    datasets.py   the data, as it is saved
    store.py      the cache directory: which references and scorers, which data
    missing.py    which responses have no row yet
    upkeep.py     damage, repair, compaction, upgrade, rows that disagree
    coverage.py   which data have numbers under which reference
    pairs.py      pairs with their log-probs, for other programs
    imported.py   log-probs that other programs computed
"""

from mrpo_tools.cache.datasets import GROUPS_SCHEMA, group_from_row
from mrpo_tools.cache.files import (
    FORMAT_VERSION,
    LISTINGS,
    check_format,
    created,
    library_versions,
    read_verified,
    write_content_addressed,
)
from mrpo_tools.cache.parts import (
    LOGPS_SCHEMA,
    PART_ROWS,
    PART_SECONDS,
    SCORES_SCHEMA,
    STATUSES,
    VERDICTS_SCHEMA,
    LogpRow,
    Part,
    ScoreRow,
    VerdictRow,
    first_of_each,
)
from mrpo_tools.cache.records import WriterRecord
from mrpo_tools.cache.reference import ReferenceStore
from mrpo_tools.cache.scores import ScoreStore
from mrpo_tools.cache.store import Cache
from mrpo_tools.cache.store_of_parts import PartStore
from mrpo_tools.cache.verdicts import VerdictStore
from mrpo_tools.cache.writer import PartWriter

__all__ = [
    "FORMAT_VERSION",
    "GROUPS_SCHEMA",
    "LISTINGS",
    "LOGPS_SCHEMA",
    "PART_ROWS",
    "PART_SECONDS",
    "SCORES_SCHEMA",
    "STATUSES",
    "VERDICTS_SCHEMA",
    "Cache",
    "LogpRow",
    "Part",
    "PartStore",
    "PartWriter",
    "ReferenceStore",
    "ScoreRow",
    "ScoreStore",
    "VerdictRow",
    "VerdictStore",
    "WriterRecord",
    "check_format",
    "created",
    "first_of_each",
    "group_from_row",
    "library_versions",
    "read_verified",
    "write_content_addressed",
]

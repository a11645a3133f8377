"""Files and data sets -> numbered rows, or problems with their place.

    text    .jsonl .json .gz .zst, by `strict_json`      \\
    tables  .parquet                                       > `rows.Row` or `rows.Problem`
    hub     folders and data sets of `datasets`          /
"""

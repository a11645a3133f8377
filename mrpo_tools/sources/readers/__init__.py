"""Files and data sets -> numbered rows, or problems with their place.

    text       .jsonl .json .gz .zst, by `strict_json`   \\
    delimited  .csv .tsv                                   > `rows.Row` or `rows.Problem`
    tables     .parquet                                  /
    hub        folders and data sets of `datasets`      /
"""

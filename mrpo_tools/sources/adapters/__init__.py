"""Rows -> prompts and responses.

detect      columns -> adapter; `catalogue` is the table of them, `adapter` what one is
pairs, scored   the adapters, on `conversation`, `transcripts` and `fields`
"""

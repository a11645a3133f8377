"""Rows -> prompts and responses.

detect         columns -> adapter; `catalogue` is the table of them, `adapter` what one is
pairs, scored  the adapters: a row -> prompt and responses
conversation, transcripts   messages, texts and transcripts -> turns
fields         every check of a single value, with its path
"""

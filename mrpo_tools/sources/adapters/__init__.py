"""Rows -> prompts and responses.

detect         columns -> adapter; `catalogue` is the table of them, `adapter` what one is
pairs, scored, verdicts   the adapters: a row -> prompt and responses
way_out        what to do where none fits
conversation, transcripts   messages, texts and transcripts -> turns
tools          tools that a prompt offers, and the calls of messages
fields         every check of a single value, with its path
"""

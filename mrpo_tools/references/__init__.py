"""A reference: from its name to files, identity, ids and a model.

locate           a path or hub id -> the files on this disk
identity         which numbers are the same numbers; `hashes` of files beneath it
resolved         a name and its words -> files, dtype and identity, without any weights
rendering        text -> ids of one tokenizer; `control_tokens`: user text never becomes one
chat             a template at work: `turns` it sees, and evidence that it wrote all of them
loading          files -> a model, in 4 bits or with an adapter; `devices` it runs on
merge            a model and its adapter -> one ordinary model
"""

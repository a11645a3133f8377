"""The run directory: written, read, compared and tabulated; no torch.

run          what a run is, and how far it has come
record       its files: what it was, what training took, what evaluations measured
checkpoints  where training goes on from; sealed when whole, passed over when not
read         the reader of run directories
methods      runs grouped into methods; what is `comparable`; the `columns` of a table
compare      methods side by side; `marks` of those that differ; its `caption` and `formats`
"""

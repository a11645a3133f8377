"""The run directory: written, read, compared and tabulated; no torch.

run       what a run is, and how far it has come
read      what runs measured
methods   runs grouped into methods; `compare` them; `formats` of the table
"""

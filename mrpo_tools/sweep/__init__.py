"""Grids over recipes and seeds: `grid` says which runs there are, `sweep` makes them."""

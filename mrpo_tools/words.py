"""The names that a user chooses among, once for options, recipes and mathematics. No torch."""

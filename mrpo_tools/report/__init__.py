"""`mrpo report`: runs as one page that needs nothing else, and as pictures. No torch."""

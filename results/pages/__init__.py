"""How the results are written and drawn: one file a result."""

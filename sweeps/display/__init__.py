"""How sweeps stand, as lines and tables for a person."""

"""What users ask for: a sweep, a search, a run, a cell, as one object or one document."""

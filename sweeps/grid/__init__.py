"""A sweep's points: composed, expanded, frozen at launch."""

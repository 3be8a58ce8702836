"""Runs executed one after another in one process, and what they take."""

"""Means, intervals, comparisons and verdicts: what the records show, and how sure that is."""

"""Figures: what is drawn, how it looks, and the files with their captions."""

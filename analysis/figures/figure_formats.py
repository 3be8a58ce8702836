"""The file formats of figures. Without Matplotlib, so that the command line knows them without loading it."""

from __future__ import annotations

FORMATS = ("pdf", "png", "svg")
DEFAULT_FORMATS = ("pdf", "png")

"""sweeps: the login node. Expands a sweep, freezes it, sends its runs off as jobs and watches them, without torch."""

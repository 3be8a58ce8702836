"""The status of sweeps as lines, tables and JSON, and the live table on a terminal."""

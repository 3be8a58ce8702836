"""The state of runs, why they ended, and what to type next."""

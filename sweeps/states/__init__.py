"""The states of runs, the causes of failures, and the commands to type next."""

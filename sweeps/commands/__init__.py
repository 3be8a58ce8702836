"""The commands of the login node, a module each: what it is for (its docstring is the help), its options, its function.

They import nothing that takes time to load: help is there at once. What a command does is in `sweeps.verbs`.
"""

COMMANDS = ("plan", "launch", "search", "measure", "status", "logs", "cancel", "diff", "clean", "doctor", "sync")

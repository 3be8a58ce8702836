"""The commands of the login node, one module each, with its help text (the module's docstring), its options and its function.

They import nothing that takes time to load, so that help appears at once. What the commands do is in `sweeps.verbs`.
"""

COMMANDS = (
    "plan",
    "launch",
    "search",
    "measure",
    "status",
    "logs",
    "cancel",
    "diff",
    "clean",
    "doctor",
    "sync",
    "settings",
)

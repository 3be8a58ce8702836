"""Searches: studies whose trials are made one after another (`mmprompt.studies.study`), by workers that no process directs.

`space` reads and checks a file of conf/search/; `advance` decides what to do next, and `halving` which trials go on; `worker`
executes it, on a node or on this machine. The command is in `sweeps.verbs.search`.
"""

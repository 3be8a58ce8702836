"""Searches: studies of trials that are made one after the other (`mmprompt.studies.study`), by workers that no process directs.

`space` reads what conf/search says and freezes it; `advance` says what to do next; `halving` which trials go on;
`worker` does it, on a node or here; `verb` is `python -m sweeps search`.
"""

"""Searches: studies of trials that are made one after the other (`mmprompt.study`), by workers that nobody directs.

`space` reads what conf/search says and freezes it; `advance` says what is to be done next, whoever asks; `halving` who goes on;
`worker` does it, on a node or here; `verb` is `python -m sweeps search`.
"""

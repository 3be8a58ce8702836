"""`python -m sweeps sync`: the records of the store's runs, on the W&B server.

It may be asked again at any time: what arrived is not sent twice, and what an attempt is still writing waits for its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmprompt.runs.store import Attempt, RunFolder, Store
from mmprompt.runs.wandb_record import WandbRecord
from mmprompt.runs.wandb_server import ServerError, is_marked, known, mark, send, sendable, server
from sweeps.grid.launched import read
from sweeps.states.state import Queue, is_alive, queue

SHOWN = 5  # records that were not sent


def sync(names: Sequence[str], runs: Path) -> int:
    """Sends what the server has not: of these sweeps, of all runs if none is named.

    Returns 0 if every record of an attempt that is over is there, 1 if not. Raises StoreError for an unknown sweep.
    """
    store = Store(runs.absolute())
    folders = [store.run(run) for run in _runs(store, names)]
    queued = queue(store, [folder.id for folder in folders])
    found = [one for folder in folders for one in _records(folder, queued)]
    over = [file for file, is_over in found if is_over]
    unmarked = [file for file in over if not is_marked(file)]
    records = [record for file in unmarked if (record := sendable(file))]
    parts = {
        "are on the server": len(over) - len(unmarked),
        "to check": len(records),
        "with nothing in it": len(unmarked) - len(records),
        "of attempts at work": len(found) - len(over),
    }
    print(f"{len(found)} records: " + ", ".join(f"{count} {what}" for what, count in parts.items() if count))
    try:
        return _send(records) if records else 0
    except ServerError as error:
        print(f"{error}\nthe same command goes on from here")
        return 1


def _runs(store: Store, names: Sequence[str]) -> list[str]:
    if not names:
        return sorted(store.runs())
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(read(store, store.manifest_name(name)).runs)
    return list(found)


def _records(folder: RunFolder, queued: Queue) -> Iterator[tuple[Path, bool]]:
    """The record of each attempt, and whether the attempt is over."""
    result = folder.result_if_readable()
    for attempt in folder.readable_attempts():
        file = attempt.wandb
        if file is not None:
            published = result is not None and result["attempt"] == attempt.number
            yield folder.path / file, published or _is_over(attempt, queued)


def _is_over(attempt: Attempt, queued: Queue) -> bool:
    return (
        attempt.reason is not None
        or attempt.has_ended
        or is_alive(attempt, queued.jobs.get(attempt.run.id, ())) is False
    )


def _send(records: Sequence[WandbRecord]) -> int:
    with server() as api:
        there = known(api, records)
        for record in there:
            mark(record.path)
        missing = [record for record in records if record not in there]
        print(f"{len(there)} are there already, {len(missing)} to send", flush=True)
        refused = [(record, why) for record, why in send(api, missing) if why is not None]
    print(f"{len(missing) - len(refused)} sent" + (f", {len(refused)} not:" if refused else ""))
    for record, why in refused[:SHOWN]:
        print(f"  {record.path}\n    {why}")
    return 1 if refused else 0

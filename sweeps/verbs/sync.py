"""`python -m sweeps sync`: sends the W&B records of the store's runs to the W&B server.

It may be repeated at any time: no record is sent twice, and records of attempts that are still running are left for later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_record import WandbRecord
from mmprompt.runs.wandb_server import ServerError, is_marked, known, mark, send, sendable, server
from sweeps.grid.launched import read
from sweeps.states.state import Queue, is_alive, queue

SHOWN = 5  # how many of the records that were not sent are listed


def sync(names: Sequence[str], runs: Path) -> int:
    """Sends the records that the server does not have: of these sweeps, or of all runs if none is named.

    Returns 0 if the server then has the record of every ended attempt, else 1. Raises StoreError for an unknown sweep.
    """
    store = Store(runs.absolute())
    folders = [store.run(run) for run in _runs(store, names)]
    queued = queue(store, [folder.id for folder in folders])
    files = [file for folder in folders for file in _record_files(folder, queued)]
    complete = [file for file, is_over in files if is_over]
    unmarked = [file for file in complete if not is_marked(file)]
    records = [record for file in unmarked if (record := sendable(file))]
    parts = {
        "are on the server": len(complete) - len(unmarked),
        "to check": len(records),
        "with nothing in it": len(unmarked) - len(records),
        "of attempts at work": len(files) - len(complete),
    }
    print(f"{len(files)} records: " + ", ".join(f"{count} {what}" for what, count in parts.items() if count))
    try:
        return _send(records) if records else 0
    except ServerError as error:
        print(f"{error}\nthe same command goes on from here")
        return 1


def _runs(store: Store, names: Sequence[str]) -> list[str]:
    if not names:
        return sorted(store.runs())
    runs: dict[str, None] = {}
    for name in names:
        runs |= dict.fromkeys(read(store, store.manifest_name(name)).runs)
    return list(runs)


def _record_files(folder: RunFolder, queued: Queue) -> Iterator[tuple[Path, bool]]:
    """The record file of each attempt, and whether the attempt has ended."""
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
        on_server = known(api, records)
        for record in on_server:
            mark(record.path)
        missing = [record for record in records if record not in on_server]
        print(f"{len(on_server)} are there already, {len(missing)} to send", flush=True)
        refused = [(record, why) for record, why in send(api, missing) if why is not None]
    print(f"{len(missing) - len(refused)} sent" + (f", {len(refused)} not:" if refused else ""))
    for record, why in refused[:SHOWN]:
        print(f"  {record.path}\n    {why}")
    return 1 if refused else 0

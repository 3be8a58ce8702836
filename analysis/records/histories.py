"""The history of a W&B record as a frame."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmprompt.runs.wandb_record import WandbRecord, read_record


def history_frame(record: WandbRecord) -> pd.DataFrame:
    """A row per logged step, in order; a column per key, `_step` among them, NaN in rows without it. Empty if it was not read."""
    if not record.history:
        return pd.DataFrame()
    columns = {key: pd.Series(column.values, index=column.rows) for key, column in record.history.items()}
    return pd.DataFrame(columns, index=pd.RangeIndex(record.rows))


def read_history(file: Path) -> pd.DataFrame:
    """The same, from a record file. Raises RecordError if it cannot be opened or is no W&B file."""
    return history_frame(read_record(file, history=True))

"""The framing of a W&B record file: records in LevelDB's log format, in blocks, each chunk with its checksum.

The writer uses it to see that a record is complete, the reader of `analysis` to read it. Reads what can be read and says
where it cannot. Part of the light half of the package: stdlib only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 32768  # the file is cut into blocks; no chunk crosses a block's end
MAGIC = b":W&B\xe1\xbe\x00"  # the file's first bytes
CHUNK = struct.Struct("<IHB")  # checksum, length and kind, in front of each chunk's bytes
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # a record is one full chunk, or a first, any number of middle ones, and a last


@dataclass(frozen=True)
class Damage:
    """A place where a record file cannot be read; what follows it in the same block is lost."""

    offset: int
    reason: str


def payloads(data: bytes, start: int) -> Iterator[bytes | Damage]:
    """Each record of a W&B file (LevelDB's log framing, CRC-32) as bytes, from `start` on; `data` begins a block."""
    position, parts = start, b""
    opened: int | None = None  # where the record began that is being put together
    while position < len(data):
        room = BLOCK - position % BLOCK
        if room < CHUNK.size:  # the rest of a block that holds no chunk is padding
            position += room
            continue
        head = data[position : position + CHUNK.size]
        checksum, length, kind = CHUNK.unpack(head.ljust(CHUNK.size, b"\0"))
        chunk = data[position + CHUNK.size : position + CHUNK.size + length]
        if len(head) < CHUNK.size or len(chunk) < length <= room - CHUNK.size:
            yield Damage(position, "the file ends inside a chunk")
            return
        if not FULL <= kind <= LAST or zlib.crc32(head[6:] + chunk) != checksum:
            yield Damage(position, "a chunk does not match its checksum")
            position, opened = position + room, None
            continue
        if opened is not None and kind in (FULL, FIRST):
            yield Damage(opened, "a record has no end")
        if kind in (FULL, FIRST):
            opened, parts = position, b""
        if opened is not None:  # else: the rest of a record whose beginning is not there
            parts += chunk
            if kind in (FULL, LAST):
                yield parts
                opened = None
        position += CHUNK.size + length
    if opened is not None:
        yield Damage(opened, "a record has no end")

"""The framing of a W&B record file: records in LevelDB's log format, in blocks, each chunk with its checksum.

The writer uses it to see that a record is complete, the reader of `analysis` to read it, the upload to mend it. Reads what
can be read and says where it cannot. Part of the light half of the package: stdlib only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
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


def payloads(data: bytes, start: int, inside: bool = False) -> Iterator[bytes | Damage]:
    """Each record of a W&B file (LevelDB's log framing, CRC-32) as bytes, from `start` on; `data` begins a block.

    `inside`: it may begin inside a record, which is passed over.
    """
    position, parts = start, b""
    opened: int | None = None  # where the record began that is being put together
    is_whole = not inside  # what came last: else an end without a beginning is no news
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
            position, opened, is_whole = position + room, None, False
            continue
        if opened is not None and kind in (FULL, FIRST):
            yield Damage(opened, "a record has no end")
        if opened is None and kind in (MIDDLE, LAST) and is_whole:
            yield Damage(position, "a record has no beginning")
        if kind in (FULL, FIRST):
            opened, parts = position, b""
        if opened is not None:  # else: the rest of a record whose beginning is not there
            parts += chunk
            if kind in (FULL, LAST):
                yield parts
                opened = None
        is_whole = kind in (FULL, LAST)
        position += CHUNK.size + length
    if opened is not None:
        yield Damage(opened, "a record has no end")


def framed(records: Iterable[bytes]) -> bytes:
    """A whole W&B file that holds these records."""
    data = bytearray(MAGIC)
    for record in records:
        rest, more, last = record, FIRST, FULL  # the kind of a chunk that does not end the record, and of one that does
        while True:
            room = BLOCK - len(data) % BLOCK - CHUNK.size
            if room < 0:
                data += bytes(room + CHUNK.size)
                continue
            part, rest = rest[:room], rest[room:]
            kind = more if rest else last
            data += CHUNK.pack(zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            if not rest:
                break
            more, last = MIDDLE, LAST
    return bytes(data)

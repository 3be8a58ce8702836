"""The framing of a W&B record file: records in LevelDB's log format, in blocks, each chunk with its checksum.

The writer uses it to check that a record is complete, the analysis to read it, and the upload to repair it. It reads everything
that can be read, and reports the places that cannot. Part of the light half of the package: standard library only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BLOCK = 32768  # bytes; the file consists of blocks, and no chunk crosses the end of a block
MAGIC = b":W&B\xe1\xbe\x00"  # the file's first bytes
CHUNK = struct.Struct("<IHB")  # checksum, length and kind, in front of each chunk's bytes
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # a record is one full chunk, or a first, any number of middle ones, and a last


@dataclass(frozen=True)
class Damage:
    """A place where a record file cannot be read. The rest of its block is lost."""

    offset: int
    reason: str


def payloads(data: bytes, start: int, inside: bool = False) -> Iterator[bytes | Damage]:
    """Yields each record of a W&B file (LevelDB's log framing, CRC-32) as bytes, from `start` on. `data` begins with a block.

    `inside`: the data may begin inside a record, which is then skipped.
    """
    position, parts = start, b""
    opened: int | None = None  # where the record began whose chunks are being joined
    is_whole = not inside  # whether the last record was complete; only then a chunk without a beginning is new damage
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
        if opened is not None:  # else it is the rest of a record without a beginning
            parts += chunk
            if kind in (FULL, LAST):
                yield parts
                opened = None
        is_whole = kind in (FULL, LAST)
        position += CHUNK.size + length
    if opened is not None:
        yield Damage(opened, "a record has no end")


def framed(records: Iterable[bytes]) -> bytes:
    """A complete W&B file with these records."""
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

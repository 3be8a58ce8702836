"""Decoded images, kept in the cache and shared by all processes of a store, so that each is decoded once: STORE/cache/KEY.images.

m different images, S pixels a side. The file begins with the crc32 of each image, m times 4 bytes, zero where there is no image
yet. The images follow, each S S 3 uint8. It has its full size from the start, and takes room on the disk as it fills.

There are no locks. An image is written before its crc32, which is read before the image: a process that is killed leaves an image
without one, and two processes that decode the same image write the same bytes. Every image that is read is checked. One that is
damaged, or that a shortened file lacks, is decoded and written again. KEY is a hash of everything that decides the pixels.

The file is read, not memory-mapped, as features are (`mmprompt.training.feature_cache`).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import features

from mmprompt.runs.cache import Cache
from mmprompt.runs.files import share

CHECKSUM_BYTES = 4
NONE = bytes(CHECKSUM_BYTES)  # instead of the checksum of an image that is not there
DECODER = f"libjpeg {features.version('jpg')}, turbo {features.version('libjpeg_turbo')}"
VERSION = 1  # raise it when the file's format changes


class DecodedImages:
    """The file of the decoded images of a split, open to read and write."""

    def __init__(self, name: str, digests: Sequence[bytes], side: int, cache: Cache) -> None:
        """`digests`: of each different image; with Pillow's JPEG decoder and `side` they decide the pixels."""
        self.name, self.side, self.cache = name, side, cache
        self.image_bytes, self.first = 3 * side**2, CHECKSUM_BYTES * len(digests)
        self.size = self.first + self.image_bytes * len(digests)
        key = hashlib.sha256(f"{VERSION} {side} {DECODER}\n".encode())
        key.update(b"".join(digests))
        self.file = cache.folder / f"{key.hexdigest()[:32]}.images"
        self.handle: io.FileIO | None = None
        self.writable = True
        self.said_unusable, self.said_damaged = threading.Lock(), threading.Lock()  # taken by the thread that says it

    def open(self) -> None:
        """Makes the file if there is none and it fits, and opens it. If it cannot, or if it does not fit, prints why."""
        try:
            self.cache.prepare()
            if not self.file.exists():
                fits, line = self.cache.room(self.name, self.size, self.consequence)
                print(line, flush=True)
                if not fits:
                    return
            handle = io.FileIO(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666), "r+")
            share(self.file)
            if os.fstat(handle.fileno()).st_size < self.size:
                os.ftruncate(handle.fileno(), self.size)
            self.handle = handle
        except OSError as error:
            self.report(error)

    @property
    def consequence(self) -> str:
        """What it means that images are not kept, for messages."""
        return f"{self.name} that are not in it are decoded each time they are needed"

    def report(self, error: OSError) -> None:
        """Prints, once, that the file cannot be used, and what this means."""
        if self.said_unusable.acquire(blocking=False):
            print(f"{self.file} cannot be used ({error.strerror}); {self.consequence}", flush=True)

    def read(self, number: int, image: np.ndarray) -> bool:
        """Reads an image into `image`, S S 3 uint8. Returns False if it is not there, damaged, or cannot be read."""
        if self.handle is None:
            return False
        try:
            known = os.pread(self.handle.fileno(), CHECKSUM_BYTES, CHECKSUM_BYTES * number)
            if known == NONE or len(known) < CHECKSUM_BYTES:
                return False
            length = os.preadv(self.handle.fileno(), [image.data], self.place(number))
        except OSError as error:
            self.report(error)
            return False
        sound = length == self.image_bytes and checksum(image) == known
        if not sound and self.said_damaged.acquire(blocking=False):
            print(f"{self.file} ({self.name}) is damaged; each damaged image is decoded again", flush=True)
        return sound

    def write(self, number: int, image: np.ndarray) -> None:
        """Writes an image, and then its checksum. If that fails, prints why, once, and this process writes no more."""
        if self.handle is None or not self.writable:
            return
        try:
            for content, place in ((image.data, self.place(number)), (checksum(image), CHECKSUM_BYTES * number)):
                if os.pwrite(self.handle.fileno(), content, place) < memoryview(content).nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.writable = False
            self.report(error)

    def place(self, number: int) -> int:
        """Where an image begins in the file."""
        return self.first + self.image_bytes * number


def checksum(image: np.ndarray) -> bytes:
    """The crc32 of an image, 1 in place of 0."""
    return (zlib.crc32(image.data) or 1).to_bytes(CHECKSUM_BYTES, "little")

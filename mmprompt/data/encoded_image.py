"""An image as OFA's files have it: a JPEG or PNG in base64, url-safe or not (facts 5.1).

S pixels a side.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import os
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

# A JPEG that ends too early is read as far as it goes, the rest is grey, as in the published code: the scan sees only its header,
# and a run of days must not end at an image that finetuning as published takes.
ImageFile.LOAD_TRUNCATED_IMAGES = True
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken images
HASH = hashlib.sha256().digest_size
WORKERS = 8  # maximal number of threads that decode or hash images
ALPHABET = (string.ascii_letters + string.digits + "+/-_").encode()
HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how a JPEG and a PNG begin
HEAD = 8192  # characters of base64 in which the header of most images ends; a multiple of 4
PART = 1 << 18  # bytes to hash that are worth another thread


def opened(text: bytes) -> Image.Image:
    """Opens an image given in base64; its pixels are not decoded yet. Raises one of UNREADABLE."""
    try:
        content = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:20].decode(errors='replace')}... is not base64 ({error})") from None
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"{content[:8]!r}... begins no image that Pillow knows") from None


def size_of(text: bytes) -> tuple[int, int]:
    """Width and height of an image given in base64. Every character is checked. Raises one of UNREADABLE.

    Of a JPEG or PNG only the beginning is decoded, since its header says the size. Where that does not do, all of it is, so that
    an error is that of the whole image.
    """
    padding = len(text) - len(text.rstrip(b"="))
    if len(text) % 4 == 0 and padding < 3 and len(text.translate(None, ALPHABET)) == padding:
        with contextlib.suppress(*UNREADABLE):  # the header is longer
            head = base64.b64decode(text[:HEAD], altchars=b"-_")
            if head.startswith(HEADERS):
                return Image.open(io.BytesIO(head)).size
    return opened(text).size


def pixels(text: bytes, side: int) -> np.ndarray:
    """An image given in base64, S S 3 uint8: resized bicubically, without keeping the aspect ratio (facts 5.5).

    Raises one of UNREADABLE.
    """
    return np.asarray(opened(text).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def hashes(texts: Sequence[memoryview]) -> list[bytes]:
    """The sha256 of each text. Threads share the work: hashing lets go of Python's global lock."""
    parts = min(threads(), sum(map(len, texts)) // PART)
    if parts < 2:
        return hashed(texts)
    step = -(-len(texts) // parts)
    done = workers().map(hashed, (texts[first : first + step] for first in range(0, len(texts), step)))
    return [digest for part in done for digest in part]


def hashed(texts: Sequence[memoryview]) -> list[bytes]:
    return [hashlib.sha256(text).digest() for text in texts]


def threads() -> int:
    """How many threads work on images: as many as this process has cores, WORKERS at most."""
    return min(WORKERS, len(os.sched_getaffinity(0)))


@cache
def workers() -> ThreadPoolExecutor:
    """The threads of this process that work on images: begun once, since a batch is loaded in less time than they take to start."""
    return ThreadPoolExecutor(threads(), thread_name_prefix="images")

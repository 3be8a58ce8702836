"""The messages of a W&B record file: W&B's protobuf `Record`, numbered from 1 in the order in which they were written.

Most messages are logged steps. They are recognised by their tags without being decoded, which makes reading a file without its
history a tenth faster. Part of the light half of the package: protobuf and wandb are imported when a message is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmprompt.runs.wandb_file import MAGIC, payloads

NUMBER, HISTORY = b"\x08", b"\x12"  # the tags of a message's fields num and history (wandb_internal.proto)


class MessageError(ValueError):
    """The bytes are no W&B message. The message says why."""


def decoder() -> Callable[[bytes], Any]:
    """Returns a function that decodes the bytes of a message to W&B's `Record`, or raises MessageError."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

    def decode(message: bytes) -> Any:
        try:
            return Message.FromString(message)
        except DecodeError as error:
            raise MessageError(f"a record of {len(message)} bytes is no W&B message: {error}") from error

    return decode


def sound_messages(data: bytes) -> list[bytes]:
    """All messages of a file that can be read and decoded, as bytes."""
    decode, found = decoder(), []
    for payload in payloads(data, len(MAGIC)):
        if isinstance(payload, bytes):
            try:
                decode(payload)
            except MessageError:
                continue
            found.append(payload)
    return found


def is_history(message: bytes) -> bool:
    """Whether a message is a logged step. A message begins with its number, and then the tag of its kind."""
    at = _after_number(message)
    return message[:1] == NUMBER and message[at : at + 1] == HISTORY


def number_of(message: bytes) -> int:
    """A message's number; 0 if it does not begin with one."""
    if message[:1] != NUMBER:
        return 0
    number = 0
    for shift, byte in enumerate(message[1 : _after_number(message)]):
        number |= (byte & 0x7F) << (7 * shift)
    return number


def _after_number(message: bytes) -> int:
    at = 1
    while message[at : at + 1] > b"\x7f":  # a byte of the number, but not its last
        at += 1
    return at + 1

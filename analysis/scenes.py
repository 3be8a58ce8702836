"""What a run was asked on the small world: the pictures, questions and right answers of a split. Of files there is nothing here:
those lie where the runs were, and need torch to be read.

m examples of a split, S x S pixels of a picture.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmprompt.runs.config import WORLD_VERSION, Digits, parse
from mmprompt.runs.store import RunFolder
from mmprompt.world import small_world

SCALE = 3  # a pixel of a scene is so many of its picture
FRAME = (255, 255, 255)  # colour of the box that is the right answer


@dataclass(frozen=True)
class Scenes:
    images: np.ndarray  # m S S 3 uint8
    questions: list[str]
    answers: list[str]  # empty where the answer is a box
    boxes: list[tuple[float, float, float, float] | None]  # x0 y0 x1 y1 in pixels

    def picture(self, example: int) -> bytes:
        """A PNG, with the box that is the right answer where there is one."""
        image = Image.fromarray(self.images[example]).resize(
            [SCALE * side for side in self.images.shape[2:0:-1]], Image.Resampling.NEAREST
        )
        box = self.boxes[example]
        if box is not None:
            last = SCALE * len(self.images[example]) - 1
            ImageDraw.Draw(image).rectangle([min(SCALE * place, last) for place in box], outline=FRAME)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def data_uri(self, example: int) -> str:
        """The picture as the address of an <img>."""
        return f"data:image/png;base64,{base64.b64encode(self.picture(example)).decode()}"


def scenes(run: RunFolder, split: str) -> Scenes | None:
    """What a run was asked; None if its task reads files, or the small world of its time was another."""
    task = json.loads(run.config_file.read_text(encoding="utf-8"))["task"]
    if task["data"].get("world") != "digits" or task["data"]["fingerprint"] != f"digits-{WORLD_VERSION}":
        return None
    return _scenes(json.dumps(task["data"]), task["family"], task["template"], split)


@lru_cache(maxsize=8)  # a split takes about a second, and many rows share it
def _scenes(data: str, family: str, template: str, split: str) -> Scenes:
    made, items = small_world.split_of(parse(Digits, json.loads(data)), family, split)
    questions = [template.format_map(_Blank(item.fields)).strip() for item in items]
    return Scenes(made.images, questions, [item.answer for item in items], [item.box for item in items])


class _Blank(dict[str, Any]):
    """A template's field that the words do not fill, as the place asked about."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields)

    def __missing__(self, key: str) -> str:
        return f"[{key}]"

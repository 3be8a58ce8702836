"""The scenes of the small world that a run was evaluated on: the pictures, questions and right answers of a split.

Tasks that read files have none here: their files are on the machine of the runs, and reading them needs torch. m examples of a
split, S x S pixels of a picture.
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

from mmprompt.runs.run_folder import RunFolder
from mmprompt.settings.parsing import parse
from mmprompt.settings.task import WORLD_VERSION, Digits
from mmprompt.world import small_world

SCALE = 3  # pixels of a picture per pixel of the scene
FRAME = (255, 255, 255)  # colour of the box that is the right answer


@dataclass(frozen=True)
class Scenes:
    images: np.ndarray  # m S S 3 uint8
    questions: list[str]
    answers: list[str]  # empty where the answer is a box
    boxes: list[tuple[float, float, float, float] | None]  # x0 y0 x1 y1 in pixels

    def picture(self, example: int) -> bytes:
        """The scene as a PNG, with a frame around the box that is the right answer, if there is one."""
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
        """The picture as the source of an <img>."""
        return f"data:image/png;base64,{base64.b64encode(self.picture(example)).decode()}"


def scenes(run: RunFolder, split: str) -> Scenes | None:
    """Returns the scenes of a run's split; None if its task reads files, or if the small world has changed since the run."""
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
    """The fields of a template; a field without a value, such as the place that a question is about, becomes `[field]`."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__(fields)

    def __missing__(self, key: str) -> str:
        return f"[{key}]"

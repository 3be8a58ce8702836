"""How every figure looks: the two widths of a paper, one font, and one colour and marker for each method, everywhere.

Sizes are those on paper: figures are made as wide as they are printed. The colours are those of Okabe and Ito, which every
eye tells apart; orange and sky blue are darkened until a thin line of them stands out from white paper (3 to 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

WIDTHS = {"column": 3.25, "text": 5.5}  # inches: of a column and of the text of a NeurIPS or ACL page
FONT = "STIXGeneral"  # goes with Times, and comes with Matplotlib
GREY = "#555555"  # of what is said in passing
LINE_GREY = "#8a8a8a"  # of lines to compare with
MARKER = 3.6  # points: of a mean
DOT = 1.7  # points: of a single run
WHISKER = 0.9  # points: width of the line of an interval

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": False,
    "axes.labelpad": 2.0,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 3.0,
    "axes.titlesize": 8,
    "font.family": FONT,
    "font.size": 7.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "legend.handletextpad": 0.4,
    "legend.labelspacing": 0.25,
    "pdf.fonttype": 42,  # Type 3 fonts are turned away by conferences
    "svg.fonttype": "path",
    "svg.hashsalt": "mmprompt",
    "xtick.labelsize": 7,
    "xtick.major.pad": 2.0,
    "xtick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.labelsize": 7,
    "ytick.major.pad": 2.0,
    "ytick.major.size": 2.0,
    "ytick.major.width": 0.5,
}


@dataclass(frozen=True)
class Look:
    """Of a line or a row."""

    colour: str
    marker: str
    line: str = "-"


BLACK, BLUE, VERMILLION, GREEN, PURPLE = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#BF8300", "#3591C9"
KNOWN = {
    "prompt": Look(BLUE, "o"),
    "finetune": Look(BLACK, "s"),
    "adapter": Look(GREEN, "^"),
    "bitfit published": Look(VERMILLION, "v"),
    "bitfit all": Look(ORANGE, "D"),
    "lora": Look(PURPLE, "P"),
}
ALIKE = {  # other names of the same thing
    "bitfit": "bitfit published",
    "prompt none": "prompt",
    "both": "prompt",  # prompts in both stacks, made by nothing else, are what `prompt` means elsewhere
    "none": "prompt",
}
OTHERS = (
    Look(SKY, "d"),
    Look("#777777", "p"),
    *(Look(look.colour, "<>hX*8"[i]) for i, look in enumerate(KNOWN.values())),
)
LINES = ("-", "--", ":", "-.")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A method's own look; anything else takes what is left, in order. More names than looks take them again."""
    found: dict[str, Look] = {}
    others = 0
    for name in dict.fromkeys(names):
        if (known := ALIKE.get(name, name)) in KNOWN:
            found[name] = KNOWN[known]
        else:
            found[name] = OTHERS[others % len(OTHERS)]
            others += 1
    return found


@contextmanager
def applied() -> Iterator[None]:
    """Matplotlib's own defaults and `STYLE`, whatever the user's are."""
    chosen: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context():
        matplotlib.rcParams.update(chosen | STYLE)
        yield

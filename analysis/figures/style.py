"""The style of all figures: the two widths of a paper, one font, and one colour and marker for each method.

Sizes are those on paper, as figures are made as wide as they are printed. The colours are those of Okabe and Ito, which are
distinguishable with colour blindness; orange and sky blue are darkened so that a thin line has a contrast of 3 to 1 on white.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib

WIDTHS = {"column": 3.25, "text": 5.5}  # inches: width of a column and of the text of a NeurIPS or ACL page
FONT = "STIXGeneral"  # matches Times, and comes with Matplotlib
GREY = "#555555"  # secondary text
LINE_GREY = "#8a8a8a"  # reference lines
MARKER = 3.6  # points: size of a mean's marker
DOT = 1.7  # points: size of a single run's dot
WHISKER = 0.9  # points: width of an interval's line

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
    "pdf.fonttype": 42,  # conferences reject Type 3 fonts
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
    """The look of a line or a row."""

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
ALIKE = {  # other names of the same method
    "bitfit": "bitfit published",
    "prompt none": "prompt",
    "both": "prompt",  # `prompt` in other sweeps means prompts in both stacks, without reparameterization
    "none": "prompt",
}
OTHERS = (
    Look(SKY, "d"),
    Look("#777777", "p"),
    *(Look(look.colour, "<>hX*8"[i]) for i, look in enumerate(KNOWN.values())),
)
LINES = ("-", "--", ":", "-.")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Returns the look of each name: a method has its own, other names take the remaining ones in order, repeatedly if needed."""
    look_of: dict[str, Look] = {}
    others = 0
    for name in dict.fromkeys(names):
        if (canonical := ALIKE.get(name, name)) in KNOWN:
            look_of[name] = KNOWN[canonical]
        else:
            look_of[name] = OTHERS[others % len(OTHERS)]
            others += 1
    return look_of


@contextmanager
def applied() -> Iterator[None]:
    """A context with Matplotlib's own defaults and `STYLE`, whatever the user's settings are."""
    defaults: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context():
        matplotlib.rcParams.update(defaults | STYLE)
        yield

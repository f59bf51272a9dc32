"""A picture on the terminal: two pixels a character cell, as the upper and the lower half of a block."""

from __future__ import annotations

import sys
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

RGB = npt.NDArray[np.uint8]
COLOURS = ("truecolor", "256")
UPPER_HALF = "▀"
WIDEST = 160


def can_preview(console: Console) -> bool:
    """Whether pictures can be seen there: a terminal with enough colours and the block's character."""
    encoding = (console.encoding or "").lower()
    return console.is_terminal and console.color_system in COLOURS and encoding.startswith("utf")


def half_blocks(picture: RGB, columns: int) -> Text:
    """A picture ``uint8 [rows, columns, 3]`` as text that is at most ``columns`` cells wide, and has no more than its pixels."""
    width = max(1, min(columns, picture.shape[1]))
    height = max(2, round(picture.shape[0] * width / picture.shape[1]))
    small = cast(RGB, cv2.resize(picture, (width, height + height % 2), interpolation=cv2.INTER_AREA))
    text = Text(no_wrap=True, end="")
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append(UPPER_HALF, Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def print_preview(picture: RGB, wanted: bool | None) -> bool:
    """Show a picture on standard output; ``wanted``: None where it can be seen. Whether it was shown."""
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if wanted is False or (wanted is None and not can_preview(console)):
        return False
    console.print(half_blocks(picture, min(console.width, WIDEST)), soft_wrap=True)
    return True

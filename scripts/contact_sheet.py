"""Draw a contact sheet of pictures with their captions, for the README.

rediff data scenes --n 10 --seed 1 --out scenes
rediff caption scenes/*.png --json > captions.jsonl
python scripts/contact_sheet.py captions.jsonl docs/images/captions.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE = 224
GAP = 8
"""Between a picture and its caption."""
MARGIN = 12
CHARACTERS = 36
FONT_SIZE = 12
SPACING = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("captions", type=Path, help="what `rediff caption --json` printed")
    parser.add_argument("target", type=Path, help="the PNG or JPEG file to write")
    parser.add_argument("--columns", type=int, default=5)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.captions.read_text().splitlines()]
    draw_sheet(rows, arguments.columns).save(arguments.target, optimize=True)


def draw_sheet(rows: Sequence[dict[str, str]], columns: int) -> Image.Image:
    """A sheet of `file` and `caption` pairs, `columns` of them side by side."""
    font = ImageFont.load_default(FONT_SIZE)
    texts = [textwrap.fill(row["caption"], CHARACTERS) for row in rows]
    blank = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    bottoms = [
        blank.multiline_textbbox((0, 0), text, font=font, spacing=SPACING)[3] for text in texts
    ]
    lines = [bottoms[start : start + columns] for start in range(0, len(rows), columns)]
    heights = [SIDE + GAP + int(max(line)) + 2 * MARGIN for line in lines]
    width = SIDE + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
        line, column = divmod(index, columns)
        x, y = column * width + MARGIN, sum(heights[:line]) + MARGIN
        with Image.open(row["file"]) as picture:
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (x, y))
        draw.multiline_text((x, y + SIDE + GAP), text, fill="black", font=font, spacing=SPACING)
    return sheet


if __name__ == "__main__":
    main()

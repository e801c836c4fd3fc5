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

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 5
SIDE = 224
TEXT_HEIGHT = 190
MARGIN = 12
CHARACTERS = 36
FONT_SIZE = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("captions", type=Path, help="what `rediff caption --json` printed")
    parser.add_argument("target", type=Path, help="the PNG file to write")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.captions.read_text().splitlines()]
    draw_sheet(rows).save(arguments.target, optimize=True)


def draw_sheet(rows: list[dict[str, str]]) -> Image.Image:
    """A sheet of `file` and `caption` pairs, five in a row."""
    width, height = SIDE + 2 * MARGIN, SIDE + TEXT_HEIGHT + 2 * MARGIN
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for index, row in enumerate(rows):
        x = index % COLUMNS * width + MARGIN
        y = index // COLUMNS * height + MARGIN
        with Image.open(row["file"]) as picture:
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (x, y))
        text = textwrap.fill(row["caption"], CHARACTERS)
        draw.multiline_text((x, y + SIDE + 8), text, fill="black", font=font, spacing=3)
    return sheet


if __name__ == "__main__":
    main()

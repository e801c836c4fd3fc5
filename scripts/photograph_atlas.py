"""Build an atlas of photographs from Tux Paint's stamps, to test what no drawing has taught.

The stamps are those of Debian's package `tuxpaint-stamps-default` 2022.06.04 (GPL-2): they are
fetched for tests and not shipped.

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb tuxpaint
    python scripts/photograph_atlas.py tuxpaint/usr/share/tuxpaint/stamps photographs
    rediff evaluate --atlas photographs --seed 1 --n 200 --tokens-per-step 1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from scripts.build_atlas import CELL, COLUMNS, fit

VENDOR = "tuxpaint"

STAMPS = """
apple food/fruit/apple_red, avocado food/fruit/avocado, banana food/fruit/banana,
basketball sports/basketball, bear animals/mammals/bears/bear, broccoli food/vegetables/broccoli,
camel animals/mammals/camel/camel, camera hobbies/camera_35mm, carrot food/vegetables/carrot,
cow animals/mammals/bovines/cow, dog animals/mammals/dogs/dog, duck animals/birds/duck,
eggplant food/vegetables/eggplant, elephant animals/mammals/elephant,
flamingo animals/birds/pink_flamingo, fox animals/mammals/dogs/fox, frog animals/amphibians/frog,
giraffe animals/mammals/giraffe, guitar hobbies/music/string/guitar_classical,
hammer household/tools/hammer, horse animals/mammals/equines/horse,
kangaroo animals/marsupials/kangaroo, key household/key, koala animals/marsupials/koala,
lemon food/fruit/lemon, light bulb household/Lightbulb, lion animals/mammals/cats/lion,
mouse animals/mammals/rodents/mouse, mushroom food/vegetables/mushroom,
onion food/vegetables/onion, otter animals/mammals/aquatic/otter, owl animals/birds/owl,
peacock animals/birds/peacock, pear food/fruit/pear, penguin animals/birds/penguin,
pig animals/mammals/pig, pineapple food/fruit/pineapple, rabbit animals/mammals/rodents/rabbit,
rose plants/flowers/rose, sheep animals/mammals/bovines/sheep, soccer ball sports/soccer,
strawberry food/fruit/strawberry, teapot household/dishes/teapot,
tiger animals/mammals/cats/tiger, zebra animals/mammals/equines/zebra
"""
"""Class and stamp: photographs only, chosen by eye."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stamps", type=Path, help="the package's folder of stamps")
    parser.add_argument("target", type=Path, help="folder of the atlas to write")
    arguments = parser.parse_args()
    entries = [entry.strip().rpartition(" ") for entry in STAMPS.replace("\n", " ").split(",")]
    stamps = {name: arguments.stamps / f"{stem}.png" for name, _, stem in entries}
    for path in stamps.values():
        if not path.is_file():
            parser.error(f"no stamp at {path}")
    arguments.target.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(stamps) // COLUMNS) * CELL))
    for number, path in enumerate(stamps.values()):
        with Image.open(path) as picture:
            place = (number % COLUMNS * CELL, number // COLUMNS * CELL)
            sheet.paste(fit(picture.convert("RGBA")), place)
    sheet.save(arguments.target / f"{VENDOR}.png")
    description = {
        "cell": CELL,
        "columns": COLUMNS,
        "vendors": {VENDOR: {"licence": "GPL-2"}},
        "classes": [{"name": name} for name in stamps],
    }
    text = json.dumps(description, indent=1)
    (arguments.target / "classes.json").write_text(f"{text}\n", encoding="utf-8")
    print(f"{arguments.target}: {len(stamps)} photographs")


if __name__ == "__main__":
    main()

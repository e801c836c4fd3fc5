"""Rebuild the atlases of named pictures from their npm packages.

Needs npm and network, and nothing else: packages go to --downloads and are kept there.

    python scripts/build_atlas.py --downloads downloads
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TRAINING_FOLDER = ROOT / "training" / "scenes" / "atlas"
HELD_OUT_FOLDER = ROOT / "tests" / "data" / "held_out_atlas"
CELL = 64
COLUMNS = 12
RASTER_WIDTH = 256
RASTERISER = "@resvg/resvg-js@2.6.2"
MIN_ALPHA = 8
"""Alpha at or below which a pixel does not count when a picture is trimmed."""

CLASSES = """
accordion 1fa97, airplane 2708-fe0f, alarm clock 23f0, ambulance 1f691,
american football 1f3c8, anchor 2693, ant 1f41c, apple 1f34e, artist palette 1f3a8,
avocado 1f951, axe 1fa93, backpack 1f392, banana 1f34c, basketball 1f3c0, bathtub 1f6c1,
bear 1f43b, bee 1f41d, bicycle 1f6b2, birthday cake 1f382, broccoli 1f966, bucket 1faa3,
bus 1f68c, butterfly 1f98b, cactus 1f335, camel 1f42a, camera 1f4f7, carrot 1f955,
castle 1f3f0, cat 1f408, cow 1f404, crab 1f980, crocodile 1f40a, croissant 1f950, crown 1f451,
dog 1f415, doughnut 1f369, drum 1f941, duck 1f986, ear of corn 1f33d, egg 1f95a,
eggplant 1f346, elephant 1f418, envelope 2709-fe0f, ferris wheel 1f3a1, fire engine 1f692,
fire extinguisher 1f9ef, flamingo 1f9a9, fox 1f98a, frog 1f438, giraffe 1f992, guitar 1f3b8,
hamburger 1f354, hammer 1f528, hedgehog 1f994, helicopter 1f681, horse 1f40e,
ice cream cone 1f366, kangaroo 1f998, key 1f511, kite 1fa81, kiwi fruit 1f95d, koala 1f428,
ladybug 1f41e, laptop 1f4bb, lemon 1f34b, light bulb 1f4a1, lion 1f981, microscope 1f52c,
monkey 1f412, motorcycle 1f3cd-fe0f, mouse 1f401, mushroom 1f344, octopus 1f419, onion 1f9c5,
open book 1f4d6, orangutan 1f9a7, otter 1f9a6, owl 1f989, palm tree 1f334, panda 1f43c,
parrot 1f99c, peacock 1f99a, pear 1f350, penguin 1f427, pig 1f416, pineapple 1f34d,
police car 1f693, pretzel 1f968, rabbit 1f407, raccoon 1f99d, rocket 1f680, rose 1f339,
sailboat 26f5, saxophone 1f3b7, shark 1f988, sheep 1f411, slice of pizza 1f355, snail 1f40c,
snake 1f40d, snowman 26c4, soccer ball 26bd, spider 1f577-fe0f, steam locomotive 1f682,
strawberry 1f353, sunflower 1f33b, taxi 1f695, teapot 1fad6, television 1f4fa, tiger 1f405,
toothbrush 1faa5, tractor 1f69c, traffic light 1f6a6, trophy 1f3c6, tulip 1f337, turtle 1f422,
umbrella 2614, volcano 1f30b, watermelon 1f349, whale 1f433, zebra 1f993
"""
"""Name and code point of every class; those on which vendors disagree were left out by eye."""

FLUENT_FILES = {
    "apple": "red-apple",
    "bee": "honeybee",
    "ice cream cone": "soft-ice-cream",
    "ladybug": "lady-beetle",
    "sheep": "ewe",
    "slice of pizza": "pizza",
    "snowman": "snowman-without-snow",
    "steam locomotive": "locomotive",
    "traffic light": "vertical-traffic-light",
    "umbrella": "umbrella-with-rain-drops",
    "whale": "spouting-whale",
}
"""File stems of the flat Fluent set that are not the name with hyphens."""

RASTERISE = """
const [cwd, folder, out, width, ...stems] = process.argv.slice(1);
const { Resvg } = require(require.resolve("@resvg/resvg-js", { paths: [cwd] }));
const fs = require("fs");
for (const stem of stems) {
  const svg = fs.readFileSync(`${folder}/${stem}.svg`);
  const picture = new Resvg(svg, { fitTo: { mode: "width", value: Number(width) } }).render();
  fs.writeFileSync(`${out}/${stem}.png`, picture.asPng());
}
"""


@dataclass(frozen=True, slots=True)
class Vendor:
    """One set of pictures in an npm package; `path` has a field for the code point or stem."""

    name: str
    package: str
    version: str
    licence: str
    author: str
    source: str
    path: str


GOOGLE = Vendor(
    "google",
    "emoji-datasource-google",
    "16.0.0",
    "Apache-2.0",
    "Google (Noto Emoji)",
    "https://github.com/googlefonts/noto-emoji",
    "package/img/google/64/{}.png",
)
TWEMOJI = Vendor(
    "twemoji",
    "emoji-datasource-twitter",
    "16.0.0",
    "CC-BY-4.0",
    "Twitter, Inc. and other contributors (Twemoji)",
    "https://github.com/jdecked/twemoji",
    "package/img/twitter/64/{}.png",
)
FLUENT = Vendor(
    "fluent",
    "fluentui-emoji",
    "1.3.0",
    "MIT",
    "Microsoft Corporation (Fluent Emoji, flat)",
    "https://github.com/microsoft/fluentui-emoji",
    "package/icons/flat/{}.svg",
)
FLUENT_3D = Vendor(
    "fluent-3d",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "Microsoft Corporation (Fluent Emoji, 3D), packaged by LobeHub",
    "https://github.com/microsoft/fluentui-emoji",
    "package/assets/{}.webp",
)


def classes() -> list[tuple[str, str]]:
    """(name, code point) in the order of the sheets."""
    entries = (entry.strip().rpartition(" ") for entry in CLASSES.replace("\n", " ").split(","))
    return [(name, code_point) for name, _, code_point in entries if name]


def fetch(vendor: Vendor, downloads: Path) -> Path:
    """The vendor's package, downloaded if it is not there yet."""
    stem = vendor.package.removeprefix("@").replace("/", "-")
    archive = downloads / f"{stem}-{vendor.version}.tgz"
    if not archive.exists():
        package = f"{vendor.package}@{vendor.version}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=downloads, check=True)
    return archive


def read_pictures(vendor: Vendor, downloads: Path) -> list[Image.Image]:
    """The vendor's picture of every class. Raises KeyError for a file that the package lacks."""
    is_svg = vendor.path.endswith(".svg")
    keys = [
        FLUENT_FILES.get(name, name.replace(" ", "-")) if is_svg else code_point
        for name, code_point in classes()
    ]
    with tarfile.open(fetch(vendor, downloads)) as archive:
        files = []
        for key in keys:
            member = archive.extractfile(vendor.path.format(key))
            if member is None:
                raise KeyError(f"{vendor.package} has no file for {key!r}")
            files.append(member.read())
    if is_svg:
        files = rasterise(dict(zip(keys, files, strict=True)), downloads)
    return [Image.open(io.BytesIO(file)).convert("RGBA") for file in files]


def rasterise(drawings: dict[str, bytes], downloads: Path) -> list[bytes]:
    """PNG files of SVG drawings, in their order."""
    folder = downloads / "rasterise"
    folder.mkdir(exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), RASTERISER], check=True)
    for stem, drawing in drawings.items():
        (folder / f"{stem}.svg").write_bytes(drawing)
    paths = [str(folder.resolve())] * 3
    subprocess.run(["node", "-e", RASTERISE, *paths, str(RASTER_WIDTH), *drawings], check=True)
    return [(folder / f"{stem}.png").read_bytes() for stem in drawings]


def fit(picture: Image.Image) -> Image.Image:
    """The picture trimmed to what is visible and centred in a cell, its aspect kept."""
    visible = picture.getchannel("A").point([255 * (alpha > MIN_ALPHA) for alpha in range(256)])
    trimmed = picture.crop(visible.getbbox())
    scale = CELL / max(trimmed.size)
    width, height = (max(1, round(side * scale)) for side in trimmed.size)
    resized = trimmed.resize((width, height), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(resized, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def write_atlas(vendors: list[Vendor], folder: Path, downloads: Path) -> None:
    """Sheets, classes.json and ATTRIBUTION.md of some vendors."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = -(-len(classes()) // COLUMNS)
    for vendor in vendors:
        sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
        for index, picture in enumerate(read_pictures(vendor, downloads)):
            sheet.paste(fit(picture), (index % COLUMNS * CELL, index // COLUMNS * CELL))
        sheet.save(folder / f"{vendor.name}.png", optimize=True)
    description = {
        "cell": CELL,
        "columns": COLUMNS,
        "vendors": {
            vendor.name: {
                "package": vendor.package,
                "version": vendor.version,
                "licence": vendor.licence,
                "source": vendor.source,
            }
            for vendor in vendors
        },
        "classes": [{"name": name, "code_point": code_point} for name, code_point in classes()],
    }
    (folder / "classes.json").write_text(json.dumps(description, indent=1) + "\n")
    (folder / "ATTRIBUTION.md").write_text(attribution(vendors))


def attribution(vendors: list[Vendor]) -> str:
    """The text that the licences ask for."""
    lines = [
        "# Attribution of the pictures",
        "",
        "The sheets here hold a selection of other people's pictures, changed as follows: SVG",
        f"drawings rasterised, every picture trimmed, resized to fit {CELL} x {CELL} pixels and",
        "placed in a sheet. `scripts/build_atlas.py` makes the sheets anew from the packages.",
        "",
    ]
    for vendor in vendors:
        lines += [
            f"- `{vendor.name}.png`: pictures by {vendor.author}, {vendor.source}, licence",
            f"  {vendor.licence} ({LICENCE_TEXTS[vendor.licence]}),",
            f"  taken from the npm package `{vendor.package}` {vendor.version}.",
        ]
    if any(vendor.licence == "MIT" for vendor in vendors):
        lines += ["", "## The MIT licence of Fluent Emoji", "", MIT_TEXT.strip()]
    return "\n".join(lines) + "\n"


LICENCE_TEXTS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "text below",
}

MIT_TEXT = """
Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main() -> None:
    """Build both atlases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--downloads", type=Path, required=True, help="folder for the packages")
    downloads: Path = parser.parse_args().downloads
    downloads.mkdir(parents=True, exist_ok=True)
    write_atlas([GOOGLE, TWEMOJI, FLUENT], TRAINING_FOLDER, downloads)
    write_atlas([FLUENT_3D], HELD_OUT_FOLDER, downloads)


if __name__ == "__main__":
    main()

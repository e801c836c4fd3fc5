"""Where the golden data lies: `REDIFF_GOLDENS`, or the copy in this repository.

Tests against recordings read `GOLDENS`; those that only need a tokenizer or rows read `OWN`.
"""

import json
import os
from pathlib import Path
from typing import Any

OWN = Path(__file__).parent / "goldens"
GOLDENS = Path(os.environ.get("REDIFF_GOLDENS") or OWN)
TOY_TOKENIZER = OWN / "data_pipeline" / "toy_tokenizer" / "tokenizer.json"


def read_json(name: str, folder: Path = GOLDENS) -> Any:
    """The parsed JSON file `name`, relative to a golden directory."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def exact_cases(name: str) -> list[dict[str, Any]]:
    """The cases of a generation family that are neither fragile nor ill defined."""
    return [
        case
        for case in read_json(name)["cases"]
        if not (case.get("result", case)["fragile"] or case.get("result", case)["ill_defined_ties"])
    ]

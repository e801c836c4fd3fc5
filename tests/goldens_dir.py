"""Where the golden data lies: `REDIFF_GOLDENS`, or the copy in this repository."""

import json
import os
from pathlib import Path
from typing import Any

GOLDENS = Path(os.environ.get("REDIFF_GOLDENS") or Path(__file__).parent / "goldens")


def read_json(name: str) -> Any:
    """The parsed JSON file `name`, relative to the golden directory."""
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def exact_cases(name: str) -> list[dict[str, Any]]:
    """The cases of a generation family that are neither fragile nor ill defined."""
    return [
        case
        for case in read_json(name)["cases"]
        if not (case.get("result", case)["fragile"] or case.get("result", case)["ill_defined_ties"])
    ]

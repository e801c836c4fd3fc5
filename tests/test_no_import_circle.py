"""No module imports another one that imports it, over however many modules between."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import grimp

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"
)


def circle(graph: grimp.ImportGraph) -> list[str]:
    """Modules of which each imports the next and the last is the first; empty if there are none.

    Imports under `TYPE_CHECKING` and inside functions count.
    """
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_circle_over_all_packages() -> None:
    assert {"training", "rediff_model", "server", "benchmarks", "kernels"} <= set(PACKAGES)
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert circle(graph) == []


def test_a_circle_for_types_alone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "circular_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from circular_package.two import Two\n")
    (package / "two.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from circular_package.one import One\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    graph = grimp.build_graph("circular_package", cache_dir=None)
    found = circle(graph)
    assert found[0] == found[-1]
    assert set(found) == {"circular_package.one", "circular_package.two"}

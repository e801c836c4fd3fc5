"""`rediff doctor`, and the refusal of a foreign package named kernels."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from server import doctor
from server.engine.config import EngineConfig

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

EMBEDDED = "rediff_model/checkpoints/embedded"


def findings(model: str = EMBEDDED, device: str = "cpu") -> dict[str, doctor.Finding]:
    config = EngineConfig(model=model, device=device)
    return {finding.what: finding for finding in doctor.examine(config)}


def test_all_is_well_with_the_embedded_checkpoint() -> None:
    found = findings()
    assert all(finding.ok for finding in found.values()), found
    assert "prefix attention, captions" in found["checkpoint"].value
    assert found["kernels in use"].value == "torch"
    assert found["torch"].value == metadata.version("torch")


def test_what_is_broken_is_named_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    found = findings(model=str(tmp_path / "nowhere"), device="cuda:9")
    assert not found["checkpoint"].ok
    assert not found["device"].ok
    assert "cuda:9" in found["device"].value
    assert found["python"].ok


def test_a_foreign_kernels_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.foreign_kernels() is None
    own = metadata.version

    def version(name: str) -> str:
        return "0.10.2" if name == "kernels" else own(name)

    monkeypatch.setattr(metadata, "version", version)
    clash = doctor.foreign_kernels()
    assert clash is not None
    assert "kernels 0.10.2" in clash

"""The package name `kernels`: transformers probes for a PyPI package of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROBE = """
import sys
import kernels
import kernels.ops
assert "triton" not in sys.modules, "our package loaded triton"  # torch's compiler may, later on
from transformers import LlamaModel, SiglipVisionModel
from transformers.utils import is_kernels_available
assert not is_kernels_available(), "transformers takes our kernels package for the PyPI one"
assert kernels.__file__.startswith(sys.argv[1]), kernels.__file__
"""


def test_transformers_is_not_confused_by_our_kernels_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_kernels_package_imports_nothing() -> None:
    source = (ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8")
    assert "import" not in source
    assert '__version__ = "0.1.0"' in source

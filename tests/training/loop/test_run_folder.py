"""A folder that a run trains in is closed to a second one."""

import subprocess
import sys
from pathlib import Path

import pytest

from rediff_model.files.lock import folder_lock
from training.config import TrainConfigError
from training.loop.run_folder import alone

HOLDER = """
import sys
from pathlib import Path
from rediff_model.files.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(TrainConfigError, match=f"{tmp_path} is in use by process {first.pid}"):
            alone(lambda _config, folder: folder)(None, tmp_path)
        first.kill()
    assert alone(lambda _config, folder: folder)(None, tmp_path) == tmp_path


def test_a_file_is_no_folder_to_run_in(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.touch()
    with pytest.raises(TrainConfigError, match=f"{file} is a file"):
        alone(lambda _config, folder: folder)(None, file)


def test_a_folder_is_made_and_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert alone(lambda _config, folder: folder / "checkpoint")(None, folder) == (
        folder / "checkpoint"
    )
    with folder_lock(folder):
        assert (folder / "lock").read_text().isdecimal()
    with folder_lock(folder):
        pass

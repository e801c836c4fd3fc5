"""`rediff` as a program of its own, with a fake model: `fake_rediff.py ARGUMENTS`."""

from unittest import mock

from server_fakes import FakeRunner

from server.cli import main
from server.commands import caption

if __name__ == "__main__":
    with mock.patch.object(caption, "load_runner", return_value=FakeRunner()):
        main()

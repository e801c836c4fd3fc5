"""`rediff` as a program of its own, with a fake model: `fake_rediff.py ARGUMENTS`."""

from server_fakes import FakeRunner

from server.cli import main
from server.commands import caption

if __name__ == "__main__":
    caption.load_runner = lambda settings: FakeRunner()
    main()

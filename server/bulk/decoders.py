"""Processes that read and decode pictures, so that the engine does not wait for it."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from server.bulk.item import BulkError, PictureError, decode

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from server.bulk.item import Item
    from server.images.decode import ImageLimits

logger = logging.getLogger(__name__)

Decoded = Image.Image | PictureError | BulkError
"""BulkError when there are no more workers."""


class Decoders:
    """A number of worker processes, each with a thread here that hands it pictures.

    A worker ends when its connection does: with `close`, or because this process died. A picture
    that kills its worker costs itself and no other.
    """

    def __init__(self, count: int, limits: ImageLimits) -> None:
        """`count` 0 decodes in a thread of this process, which starts sooner: for few pictures."""
        self._open = partial(Worker if count else Here, limits)
        count = count or 1
        self._asked: queue.SimpleQueue[tuple[int, Item] | None] = queue.SimpleQueue()
        # Bounded, because decoded pictures are large.
        self._done: queue.Queue[tuple[int, Decoded]] = queue.Queue(maxsize=count)
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, number: int, item: Item) -> None:
        """Ask for a picture. From any thread."""
        self._asked.put((number, item))

    def take(self) -> tuple[int, Decoded] | None:
        """Some picture that was asked for, when there is one; None after `close`."""
        while not self._closing.is_set():
            try:
                return self._done.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def close(self) -> None:
        """End the workers; what was asked for is forgotten."""
        self._closing.set()
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        """One worker's thread."""
        worker: Worker | Here | None = None
        try:
            while (asked := self._asked.get()) is not None and not self._closing.is_set():
                number, item = asked
                try:
                    worker = worker or self._open()
                    self._tell(number, worker.decode(item))
                except WorkerDied as error:
                    logger.warning("%s: %s", item.identity, error)
                    worker = None
                    self._tell(number, PictureError(str(error)))
                except (OSError, BulkError) as error:
                    self._tell(number, BulkError(f"no worker can be started: {error}"))
        finally:
            if worker is not None:
                worker.close()

    def _tell(self, number: int, decoded: Decoded) -> None:
        while not self._closing.is_set():
            try:
                self._done.put((number, decoded), timeout=0.2)
                return
            except queue.Full:
                continue


class Here:
    """Decodes in the thread that asks."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    def decode(self, item: Item) -> Image.Image | PictureError:
        """The picture, or why there is none."""
        try:
            return decode(item, self._limits)
        except PictureError as error:
            return error

    def close(self) -> None:
        """Nothing is open."""


class WorkerDied(Exception):
    """A worker process ended while it was at a picture."""


class Worker:
    """One process and the connection to it."""

    def __init__(self, limits: ImageLimits) -> None:
        """Raises BulkError when the process ends at once."""
        # A fork would copy the threads of torch in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=work, args=(theirs, limits), name="rediff-decode", daemon=True
        )
        self._process.start()
        # Held by the worker alone, its death is the end of the connection.
        theirs.close()
        try:
            self._ours.recv()
        except (EOFError, OSError):
            raise BulkError(f"it {self._end()}") from None

    def decode(self, item: Item) -> Image.Image | PictureError:
        """The picture, or why there is none.

        Raises:
            WorkerDied: the process ended; there is no use in asking it again.
        """
        try:
            self._ours.send(item)
            size, reason = self._ours.recv()
            if reason is not None:
                return PictureError(reason)
            return Image.frombytes("RGB", size, self._ours.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied(f"the process that decoded it {self._end()}") from None

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()

    def _end(self) -> str:
        self.close()
        return f"ended with status {self._process.exitcode}"


def work(connection: Connection, limits: ImageLimits) -> None:
    """What a worker process does, until the other side is gone."""
    # An interrupt from the terminal is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Of Pillow about odd files; they would run through the progress bar.
    warnings.simplefilter("ignore")
    try:
        connection.send("ready")
        while True:
            item: Item = connection.recv()
            try:
                picture = decode(item, limits)
            except PictureError as error:
                connection.send((None, str(error)))
            else:
                connection.send((picture.size, None))
                connection.send_bytes(picture.tobytes())
    except (EOFError, OSError):
        return

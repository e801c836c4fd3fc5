"""Features of pictures by content, the least recently used ones dropped first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from torch import Tensor


class FeatureCache:
    """Sequences of pictures, [L, D], up to a number of bytes. Safe from any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._making: dict[bytes, Future[Tensor]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Tensor | None:
        """The features kept under a key, which count as used now."""
        with self._lock:
            features_LD = self._kept.get(key)
            if features_LD is not None:
                self._kept.move_to_end(key)
            return features_LD

    def get_or_make(self, key: bytes, make: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """The features of a key, and whether another call made them.

        Calls with the same key at the same time make them once: the others wait. Where making
        fails, each of those tries for itself.
        """
        if (kept_LD := self.get(key)) is not None:
            return kept_LD, True
        with self._lock:
            making = self._making.get(key)
            if making is None:
                own: Future[Tensor] = Future()
                self._making[key] = own
        if making is not None:
            if making.exception() is None:
                return making.result(), True
            return make(), False
        try:
            features_LD = make()
            self.put(key, features_LD)
            own.set_result(features_LD)
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._making[key]
        return features_LD, False

    def put(self, key: bytes, features_LD: Tensor) -> None:
        """Keep features, unless they alone are more than may be kept."""
        if features_LD.nbytes > self._most_bytes:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            self.bytes += features_LD.nbytes - (0 if old is None else old.nbytes)
            self._kept[key] = features_LD
            while self.bytes > self._most_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes


def content_key(image: Image.Image) -> bytes:
    """What tells pictures apart: their pixels, size and mode, whatever file they came from."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=32)
    palette = image.getpalette()
    if palette is not None:
        digest.update(f"{palette} {image.info.get('transparency')!r}".encode())
    digest.update(image.tobytes())
    return digest.digest()

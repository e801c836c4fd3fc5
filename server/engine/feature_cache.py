"""Features of pictures by content, the least recently used ones dropped first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class FeatureCache:
    """Sequences of pictures, [L, D], up to a number of bytes. Safe from any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
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

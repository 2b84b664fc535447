"""Which picture is a copy of one seen before: exactly, or nearly.

Knows pixels and names; nothing of files or of what becomes of a copy.
"""

from __future__ import annotations

import hashlib
from typing import Final

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .blur import Picture

HASH_SIDE: Final = 16
DUPLICATE_BITS: Final = 40
"""Of 256 bits. Among 2725 photographs, copies differed in up to 38 (a retouched one; the others in up to 26), different
pictures in 50 and more. Of copies compressed to JPEG quality 10, or scaled to a third and compressed to quality 60, 99%
stayed within 22. The common hash of 64 bits does not part the two: there, portraits of different people differ in as
few as 6 bits, and such copies in 8."""


class Copies:
    """The pictures seen so far, by content: finds exact copies and near ones.

    Near ones by the perceptual hash of their brightness: re-encoded, scaled, brighter. Not those that are cropped,
    turned or mirrored.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._digests: dict[bytes, str] = {}
        self._hashes: NDArray[np.uint64] = np.empty((1024, HASH_SIDE**2 // 64), np.uint64)

    def of(self, picture: Picture, name: str) -> str | None:
        """What `picture` is a copy of, in words; or None, and it is remembered."""
        digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()
        if digest in self._digests:
            return f"the same as {self._digests[digest]}"
        bits = imagehash.phash(Image.fromarray(picture), hash_size=HASH_SIDE).hash
        own = np.packbits(bits.ravel()).view(np.uint64)
        count = len(self._names)
        if count:
            differing = np.bitwise_count(self._hashes[:count] ^ own).sum(axis=1)
            nearest = int(differing.argmin())
            if differing[nearest] <= DUPLICATE_BITS:
                return f"nearly the same as {self._names[nearest]} ({differing[nearest]} of {HASH_SIDE**2} bits differ)"
        if count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[count] = own
        self._names.append(name)
        self._digests[digest] = name
        return None

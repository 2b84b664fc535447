"""The picture size that a sequence parameter set of H.264 or H.265 declares.

Knows nothing else of it. With it, a stream that is too large is refused before a decoder makes room for it.
"""

from __future__ import annotations

from typing import Final

from .errors import RtpError

_CHROMA_PROFILES: Final = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}  # with chroma_format_idc
_MAX_GOLOMB_ZEROS: Final = 32


def h264_size(nal: bytes) -> tuple[int, int]:
    """Coded width and height, in whole macroblocks; RtpError if the bytes end too early."""
    bits = _Bits(nal[1:])
    profile = bits.read(8)
    bits.read(16)  # constraints and level
    bits.golomb()
    chroma = 1
    if profile in _CHROMA_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        bits.golomb()  # bit depths
        bits.golomb()
        bits.read(1)
        if bits.read(1):
            for number in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.golomb()  # log2 of the frame number
    order_type = bits.golomb()
    if order_type == 0:
        bits.golomb()
    elif order_type == 1:
        bits.read(1)
        bits.golomb()
        bits.golomb()
        count = bits.golomb()
        if count > 255:
            raise RtpError(f"a parameter set must have at most 255 offsets, got {count}")
        for _ in range(count):
            bits.golomb()
    bits.golomb()  # reference frames
    bits.read(1)
    width = 16 * (bits.golomb() + 1)
    height = 16 * (bits.golomb() + 1)
    frames_only = bits.read(1)
    return width, height if frames_only else 2 * height


def h265_size(nal: bytes) -> tuple[int, int]:
    """Coded width and height; RtpError if the bytes end too early."""
    bits = _Bits(nal[2:])
    bits.read(4)
    layers = bits.read(3)
    bits.read(1)
    bits.read(88 + 8)  # profile, tier, flags and level
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for profile, level in present:
        bits.read(88 * profile + 8 * level)
    bits.golomb()
    if bits.golomb() == 3:  # chroma 4:4:4
        bits.read(1)
    return bits.golomb(), bits.golomb()


class _Bits:
    """Reads bits, most significant first, without the bytes that keep start codes out of a NAL unit."""

    def __init__(self, data: bytes) -> None:
        data = data[:1024].replace(b"\x00\x00\x03", b"\x00\x00")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise RtpError("a parameter set ends too early")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > _MAX_GOLOMB_ZEROS:
                raise RtpError("a parameter set holds a number of more than 32 bits")
        return (1 << zeros) - 1 + self.read(zeros)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            step = code + 1 >> 1 if code & 1 else -(code >> 1)
            following = (last + step) % 256
        last = following or last

"""Receive the frames that a deblurd daemon restores.

from deblurd_client import Subscriber

for frame in Subscriber("tcp://127.0.0.1:5555"):
    print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)
"""

from .client import Subscriber
from .frame import Colour, Frame, Publication
from .wire import WireError

__all__ = ["Colour", "Frame", "Publication", "Subscriber", "WireError"]

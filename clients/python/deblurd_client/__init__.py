"""Receive the frames that a deblurd daemon restores.

from deblurd_client import Subscriber

for frame in Subscriber("tcp://127.0.0.1:5555"):
    print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)
"""

from .async_client import AsyncSubscriber
from .client import PublisherLostError, RefusedError, Subscriber
from .frame import Colour, Frame, Publication
from .keys import Keys, KeysError
from .wire import VersionError, WireError

__all__ = [
    "AsyncSubscriber",
    "Colour",
    "Frame",
    "Keys",
    "KeysError",
    "Publication",
    "PublisherLostError",
    "RefusedError",
    "Subscriber",
    "VersionError",
    "WireError",
]

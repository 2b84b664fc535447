"""The errors of this package. None of their texts holds an address: who knows it, puts it before them."""


class RtspError(Exception):
    """The session cannot go on; the text says why, and what to do.

    got: what the other end sent, at the end of the text. It may be anything, also a secret that it was told.
    lasting: time alone will not mend it.
    """

    def __init__(self, text: str, got: str = "", *, lasting: bool = False) -> None:
        super().__init__(text + got)
        self.text, self.got, self.lasting = text, got, lasting


class FrozenError(RtspError):
    """A stream that was set up sends no frame any more."""


class RtpError(Exception):
    """A packet makes no sense; those around it may."""


class StoppedError(Exception):
    """Somebody asked to stop: nothing is wrong."""

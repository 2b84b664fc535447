"""The errors of this package; each text names the thing, the rule and the value got."""


class DaemonError(Exception):
    """Something that a user can cause, and mend."""


class ConfigError(DaemonError):
    """A setting is unknown, of the wrong type, or impossible."""


class SourceError(DaemonError):
    """A source cannot be opened, or broke.

    lasting: time alone will not mend it, as it may an unplugged camera: a wrong password, a stream without video.
    """

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class SinkError(DaemonError):
    """Frames cannot be delivered or written."""


class StorageError(SinkError):
    """A disk is full, or failed: when that is mended, the same would go on."""

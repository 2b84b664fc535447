"""The errors of this package; each text names the thing, the rule and the value got."""


class DaemonError(Exception):
    """Something that a user can cause, and mend."""


class ConfigError(DaemonError):
    """A setting is unknown, of the wrong type, or impossible."""


class SourceError(DaemonError):
    """A source cannot be opened, or broke."""


class SinkError(DaemonError):
    """Frames cannot be delivered or written."""

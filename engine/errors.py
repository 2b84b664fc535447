"""The errors of this package; each text names the thing, the rule and the value got."""


class EngineError(Exception):
    """An engine cannot be opened, or failed while it ran."""


class ModelError(EngineError):
    """A model file is missing, damaged, or not one that an engine can run."""


class DeviceMemoryError(EngineError):
    """The device has no memory left for what was asked; with smaller tiles it might."""

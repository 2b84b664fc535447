"""The errors of this package; each text names the thing, the rule and the value got."""


class EngineError(Exception):
    """An engine cannot be opened, or failed while it ran."""


class ModelError(EngineError):
    """A model file is missing, damaged, or not one that an engine can run."""

"""The one error of this package that a user can cause."""


class ExportError(Exception):
    """Training, evaluation or export cannot go on; the text names the thing, the rule and the value got."""

"""The one error of this package that a user can cause, and how it words what pydantic finds."""

from __future__ import annotations

from typing import Any


class ExportError(Exception):
    """Training, evaluation or export cannot go on; the text names the thing, the rule and the value got."""


class InterruptedByUserError(ExportError):
    """The work was broken off because it was asked to stop."""


def broken_rule(fault: Any) -> str:
    """One of the faults of a pydantic ValidationError, in one line: the setting, its rule, the value got."""
    name = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] == "extra_forbidden":
        return f"{name!r} is no setting here"
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    if fault["type"] == "value_error":  # our own rules say what they got
        return rule if rule.startswith("'") or not name else f"{name!r}: {rule}"
    return f"{name!r} {rule}, got {fault['input']!r}"

"""What all tests share: what needs a GPU is skipped, visibly, where there is none."""

from __future__ import annotations

import pytest

from engine.driver import why_no_gpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_gpu()
    for item in items if reason else ():
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))

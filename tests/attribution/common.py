"""What tests of runs that are stopped share."""

from __future__ import annotations

from typing import Any

import pytest


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> list[dict[str, Any]]:
    """Have the number-th call of ``owner.name`` end as by Ctrl-C; the calls as they are made, their keywords."""
    calls: list[dict[str, Any]] = []
    whole = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    patch.setattr(owner, name, interrupted)
    return calls

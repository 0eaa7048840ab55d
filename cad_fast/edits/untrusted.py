"""Scores that predict held-out ablations badly make a warning when an edit is made from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..attribution.scores import Scores

# At r = 0.3 the scores account for r^2 = 9% of what held-out ablations do to J. First-order scores reach .17 to .54
# (COAR, arXiv 2404.11534), so that usable ones pass; r is 0 for scores that say nothing, and with 50 held-out
# ablations such scores exceed 0.3 by chance in 2 of 100 cases.
MIN_HELDOUT_R = 0.3


class UntrustedScoresWarning(UserWarning):
    """An edit is made from scores whose held-out correlation is below ``MIN_HELDOUT_R``."""


def nearest_check(trust: Sequence[Mapping[str, Any]], share: float) -> Mapping[str, Any] | None:
    """Of the held-out checks, the one whose ablations are nearest in size to ``share`` of the components (0..1)."""
    return min(trust, key=lambda check: abs(math.log(check["fraction"] / share)), default=None)


def warn_if_untrusted(scores: Scores, share: float, stacklevel: int = 3) -> None:
    """Warn (UntrustedScoresWarning) when the held-out r of ``scores`` is poor for an edit of ``share`` of them.

    Scores without a held-out check do not warn: the edit's provenance says that there was none.
    """
    check = nearest_check(scores.trust, share)
    if check is None or check["pearson"] >= MIN_HELDOUT_R:
        return
    low, high = check["pearson_interval"]
    warnings.warn(
        f"the scores of {scores.concept!r} predict held-out ablations of {check['fraction']:.2%} of the components "
        f"with r = {check['pearson']:.2f} [{low:.2f}, {high:.2f}], below {MIN_HELDOUT_R}: the edit may miss its "
        "concept; Attributor(method='ablated_gradient' | 'regression') and refine give better scores",
        UntrustedScoresWarning,
        stacklevel=stacklevel,
    )

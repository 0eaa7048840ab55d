"""Every check of every family comes out as ``expected`` says: right, or refused with the reason."""

import re

import pytest

from .checks import CHECKS
from .expected import PATTERNS, REASONS, REFUSED
from .outcomes import outcome
from .page import PAGE, page
from .registry import FAMILIES

CELLS = [
    pytest.param(family, check, marks=[] if family.fast else [pytest.mark.slow], id=f"{family.name}-{check}")
    for family in FAMILIES.values()
    for check in CHECKS
]


@pytest.mark.parametrize(("family", "check"), CELLS)
def test_comes_out_as_expected(family, check) -> None:
    if family.missing():
        pytest.skip(family.missing())
    result = outcome(family, check)
    reason = REFUSED.get((family.name, check))
    if reason is None:
        assert result.verdict == "right", f"{result.verdict}: {result.message}"
    else:
        assert result.verdict == "refused", f"{result.verdict}: {result.message}"
        assert re.search(PATTERNS[reason], result.message), result.message


def test_what_is_expected_is_of_cells_that_exist() -> None:
    cells = {(family, check) for family in FAMILIES for check in CHECKS}
    assert REFUSED.keys() <= cells
    assert set(REFUSED.values()) == PATTERNS.keys() == REASONS.keys()


def test_documentation_has_what_is_expected() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/families.md differs from: python -m tests.families.page"

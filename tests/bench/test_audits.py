"""The table of audits: a row per way, a column per method, and what a way that was not run says."""

from __future__ import annotations

from bench import audits
from cad_fast.auditing import AuditResult, Probe
from cad_fast.auditing.result import PLAIN


def test_every_way_is_a_row_and_every_method_a_column() -> None:
    plain = Probe(PLAIN, "plain", 20, 0, against=None)
    refused = Probe("soft prompt", "soft prompt", 0, 0, refused="it takes no embeddings")
    results = {
        "ours": AuditResult("car", (plain, refused), {}),
        "esd-x": AuditResult("car", (plain, Probe("5% of the weights", "amplified", 20, 19)), {}),
    }
    rows = audits.table(results).splitlines()
    assert rows[0] == "| way | ours | esd-x |" and len(rows) == 6
    assert rows[3] == "| soft prompt | not run: it takes no embeddings | - |"
    assert rows[4].startswith("| 5% of the weights | - | 0.95 [")
    assert rows[5] == "| **verdict** | stayed away | comes back |"

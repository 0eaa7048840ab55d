"""The documentation has the tables of the settings as they are."""

from pathlib import Path

import pytest

from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.settings_table import ray_table, server_table, table

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.mark.parametrize("text", [server_table(), ray_table()], ids=["server", "ray"])
def test_documentation_has_the_table(text) -> None:
    assert text in DOCS.read_text(), "docs/serving.md differs from: python -m cad_fast.serving.settings_table"


def test_every_setting_is_a_row() -> None:
    rows = table(ServerArguments).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(ServerArguments.model_fields)
    assert "| `max_batch_size` | a whole number of pictures, at least 1 | 8 | most pictures in the batch; " in rows[1]
    assert all(row.count("|") == 5 for row in rows)

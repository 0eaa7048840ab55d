"""The table of methods: one cell in small, resumed, and what its row says."""

from __future__ import annotations

import pytest

from bench import methods
from cad_fast import zoo


@pytest.mark.slow
def test_a_cell_is_measured_once_and_read_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "OBJECTS", ("car", "cat", zoo.RARE_OBJECT))
    study = methods.Methods(tmp_path, per_concept=2)
    cell = study.cell("uce", "car")
    assert cell["weights"] > 10_000 and cell["bytes"] == (tmp_path / "checkpoints/uce/car.safetensors").stat().st_size
    assert cell["target"]["n"] == 2 and cell["others"]["n"] == 2 and cell["worst_other"] == "cat"
    assert cell["distances"]["others"]["FD"]["value"] > 0
    monkeypatch.setattr(study, "pictures", None)  # drawing again would fail
    assert study.cell("uce", "car") == cell
    assert (tmp_path / "uce-car.png").stat().st_size > 1000


def test_a_row_has_the_means_and_the_worst_of_all() -> None:
    def cell(concept: str, left: float, others: float, worst: str, of_worst: float, seconds: float) -> dict:
        return {
            "concept": concept,
            "target": {"after": left},
            "others": {"after": others},
            "worst_other": worst,
            "concepts": {worst: {"after": of_worst}},
            "axes": {"style": {"after": 0.5}},
            "distances": {"others": {"FD": {"value": 3.0}}},
            "seconds": seconds,
            "bytes": 1000,
            "weights": 12_345,
        }

    cells = [cell("dog", 0.0, 1.0, "cat", 0.9, 1.0), cell("tree", 0.25, 0.5, "fish", 0.1, 3.0)]
    row = methods.line(methods.OURS, cells)
    assert row.count("|") == methods.HEAD.splitlines()[0].count("|")
    for part in ("0.00 0.25", "0.75", "0.10 (fish, without tree)", " 2 ", "12,345", "yes, exactly"):
        assert part in row
    assert "no: one checkpoint each" in methods.line("uce", cells)


def test_attacks_pool_their_counts() -> None:
    found = [dict.fromkeys(methods.OTHER_PROMPTS, 3), dict.fromkeys(methods.OTHER_PROMPTS, 9)]
    rows = methods.attacks_table({"no edit": found}, per_concept=12).splitlines()
    assert rows[2].startswith("| no edit | 0.50 [0.31, 0.69] |") and rows[2].count("0.50") == len(methods.OTHER_PROMPTS)


def test_figures_of_the_papers_pool_their_counts() -> None:
    def cell(left: int, others: int) -> dict:
        def change(hits: int, n: int) -> dict:
            return {"n": n, "before": 1.0, "after": hits / n}

        found = {"target": change(left, 12), "others": change(others, 40), "axes": {"style": change(30, 40)}}
        return {**found, "distances": {"others": {"FD": {"value": 2.0}}}}

    rows = methods.papers_table({"uce": [cell(0, 40), cell(6, 20)]}).splitlines()
    assert rows[2].startswith("| no edit | 0.00 [0.00, 0.14] | 1.00 [") and rows[2].endswith("| 0 |")
    ua, ira, cra, erb, far = [part.strip() for part in rows[3].split("|")[2:-1]]
    assert (
        ua.startswith("0.75 [") and ira.startswith("0.75 [") and cra.startswith("0.75 [") and erb.startswith("0.75 [")
    )
    assert far == "2.00"

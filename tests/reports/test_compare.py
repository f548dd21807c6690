"""Comparison: what changed, and terms that add up to the difference."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.compare import compare, flatten
from tests.reports import sample

NAMES = st.sampled_from(["gemm", "bubble", "latency", "data_communication", "x"])
PARTS = st.dictionaries(NAMES, st.floats(0, 100), min_size=1)


def result(parts: dict[str, float], rest: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"step_time_s": math.fsum(parts.values()) + rest, "breakdown_s": parts, **more}


@given(PARTS, PARTS, st.floats(0, 10), st.floats(0, 10))
def test_terms_add_up_to_the_difference_and_are_ordered(
    first: dict[str, float], second: dict[str, float], rest_1: float, rest_2: float
) -> None:
    part = compare([result(first, rest_1), result(second, rest_2)])["attributions"][0]
    differences = [term["difference_s"] for term in part["terms"]]
    assert math.fsum(differences) == pytest.approx(part["difference_s"], abs=1e-6)
    sizes = [abs(value) for value in differences]
    assert sizes == sorted(sizes, reverse=True)


def test_what_a_breakdown_leaves_out_is_a_term_of_its_own() -> None:
    part = compare([result({"gemm": 1.0}), result({"gemm": 1.0}, rest=0.5)])["attributions"][0]
    assert [(t["category"], t["difference_s"]) for t in part["terms"]] == [("unattributed", 0.5)]


def test_equal_results_have_no_differences() -> None:
    found = compare([sample.document(), sample.document()])
    assert (found["inputs"], found["outputs"], found["attributions"][0]["terms"]) == ([], [], [])
    assert found["attributions"][0]["difference_s"] == 0


def test_changed_inputs_and_outputs_only() -> None:
    other = sample.document(step_time_s=12.0, fits=False, peak_memory_bytes={"hbm": 85e9, "host": 41e9})
    other["scenario"]["inputs"] = {**other["scenario"]["inputs"], "name": "x", "precision": "fp8",
                                   "cluster": {"node": "hgx-h200", "nodes": 4}}
    found = compare([sample.document(), other])
    assert found["inputs"] == [{"key": "cluster.node", "values": ["hgx-h100", "hgx-h200"]},
                               {"key": "precision", "values": [None, "fp8"]}]
    changes = {row["key"]: row["changes"] for row in found["outputs"]}
    assert set(changes) == {"fits", "step_time_s", "peak_memory_bytes"}
    assert changes["step_time_s"] == [None, pytest.approx(0.2)]
    assert changes["peak_memory_bytes"] == [None, pytest.approx(85 / 68 - 1)]


def test_a_missing_step_time_gives_its_reason() -> None:
    other = sample.document(step_time_s=None, reasons={"step_time_s": "it does not fit"})
    part = compare([sample.document(), other])["attributions"][0]
    assert part["terms"] is None
    assert "it does not fit" in part["reason"]


def test_equal_names_are_told_apart_and_one_result_is_refused() -> None:
    names = compare([sample.document()] * 3)["names"]
    assert len(set(names)) == 3
    with pytest.raises(ValueError, match="two"):
        compare([sample.document()])


def test_flatten_keeps_lists_and_empty_mappings() -> None:
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "a.c": {}, "d": None}

"""The search on models of damage whose best answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpdeploy.errors import UsageError
from mlpdeploy.quant.blocks import blocks_of
from mlpdeploy.quant.search import BlockCost, Cost, Goal, Keep, Measure, search, sensitivity

MACS = {"a": 10, "b": 20, "c": 30, "d": 40}


def additive(noise: dict[str, float]) -> Measure:
    """Return a measure in which each quantized block adds its own noise power."""

    def measure(keep: Keep) -> Cost:
        power = sum(value for block, value in noise.items() if block not in keep)
        return Cost(-10 * math.log10(power + 1e-12), 100 * power)

    return measure


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def test_the_noisiest_block_is_ranked_first_and_kept_alone() -> None:
    measure = additive({"a": 0.001, "b": 0.5, "c": 0.002, "d": 0.003})
    ranked = sensitivity(MACS, measure, quiet)
    assert [cost.block for cost in ranked] == ["b", "d", "c", "a"]
    found = search(ranked, Goal(min_sqnr_db=20), measure)
    assert found.keep == ("b",)
    assert found.cost.sqnr_db >= 20


def test_nothing_is_kept_where_nothing_needs_it() -> None:
    measure = additive(dict.fromkeys(MACS, 1e-6))
    found = search(sensitivity(MACS, measure, quiet), Goal(max_drop=0.5), measure)
    assert found.keep == ()


RANKED = [BlockCost(name, macs, Cost(0, 0), Cost(0, 0)) for name, macs in MACS.items()]


def test_what_is_not_needed_beside_others_is_given_back() -> None:
    found = search(RANKED, Goal(min_sqnr_db=40), lambda keep: Cost(50 if "b" in keep else 0, 0))
    assert found.keep == ("b",)


def test_the_larger_of_two_blocks_is_given_back() -> None:
    found = search(RANKED, Goal(min_sqnr_db=40), lambda keep: Cost(50 if "c" in keep and keep & {"a", "b"} else 0, 0))
    assert found.keep == ("a", "c")


def test_a_goal_is_reached_at_its_border() -> None:
    assert Goal(max_drop=0.5).reached(Cost(0, 0.5))
    assert not Goal(max_drop=0.5).reached(Cost(0, 0.501))
    assert Goal(min_sqnr_db=30).reached(Cost(30, 9))
    assert not Goal(min_sqnr_db=30).reached(Cost(29.99, 0))
    assert not Goal(max_drop=0.5, min_sqnr_db=30).reached(Cost(29, 0))


def test_an_impossible_goal_is_refused() -> None:
    with pytest.raises(UsageError, match="even with d alone"):
        search(sensitivity(MACS, lambda keep: Cost(len(keep), 5), quiet), Goal(max_drop=1), lambda keep: Cost(10, 5))
    for goal in ({"max_drop": -1.0}, {"max_drop": math.nan}, {"min_sqnr_db": math.nan}):
        with pytest.raises(UsageError, match=r"is -1|is nan"):
            Goal(**goal)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-6, 1), min_size=2), st.floats(-10, 60))
def test_the_answer_reaches_the_goal_and_no_block_of_it_can_go(noise: dict[str, float], wanted: float) -> None:
    measure = additive(noise)
    ranked = sensitivity(dict.fromkeys(noise, 1), measure, quiet)
    if measure(frozenset(noise) - {ranked[-1].block}).sqnr_db < wanted:
        with pytest.raises(UsageError, match="even with"):
            search(ranked, Goal(min_sqnr_db=wanted), measure)
        return
    found = search(ranked, Goal(min_sqnr_db=wanted), measure)
    assert found.cost.sqnr_db >= wanted
    for block in found.keep:
        assert measure(frozenset(found.keep) - {block}).sqnr_db < wanted


def test_blocks_from_names() -> None:
    nodes = [
        "patch_embed.proj/Conv",
        "layers.0.blocks.0.axial_shift.conv2_1/Conv",
        "layers.0.blocks.0.mlp.fc1/Conv",
        "layers.0.blocks.1.mlp.fc1/Conv",
        "layers.0.downsample.reduction/Conv",
        "layers.1.blocks.0.mlp.fc1/Conv",
        "head/Gemm",
    ]
    assert list(dict.fromkeys(blocks_of(nodes).values())) == [
        "patch_embed",
        "layers.0.blocks.0",
        "layers.0.blocks.1",
        "layers.0.downsample",
        "layers.1.blocks.0",
        "head",
    ]
    vip = ["network.0.0.attn/WeightedPermuteMlp/4_MatMul", "network.0.1.mlp.fc1/MatMul", "network.1.proj/Conv"]
    assert list(blocks_of(vip).values()) == ["network.0.0", "network.0.1", "network.1"]

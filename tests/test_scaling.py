"""The scaling page: its measurement runs, and its simulation keeps to a few laws."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from benchmarks.networks import NETWORKS
from benchmarks.scaling import (
    H100S,
    PAGE,
    RANKS,
    Cluster,
    all_reduce_seconds,
    efficiency,
    measure,
    page,
    simulated,
    simulation,
)
from dcvit.baselines import DEIT_T
from dcvit.cost import parameters
from dcvit.scale import smoke

networks = st.sampled_from(list(NETWORKS.values()))
ranks = st.integers(1, 512)


def test_it_is_measured_and_written(monkeypatch):
    """At tiny size: one and two ranks, and sums over as few."""
    recipe = smoke(DEIT_T)
    monkeypatch.setattr("benchmarks.scaling.RANKS", (2,))
    monkeypatch.setattr("benchmarks.scaling.ROUNDS", 1)
    found = measure(recipe=recipe, batch=4, steps=2, sizes=(400, 4000))
    assert found.steps.keys() == {1, 2}
    assert all(0 < best <= middle < 60 and used > 0 for ((middle, best, used),) in found.steps.values())
    assert found.sums.keys() == {(2, 400), (2, 4000)}
    assert found.bytes == 4 * parameters(recipe)
    text = page(found)
    assert f" {1e3 * found.steps[2][0][0]:.0f} " in text
    assert "shared with other work" in text
    assert "| 0.004 MB" in text


def test_the_page_has_the_simulation_that_the_model_gives():
    text = PAGE.read_text(encoding="utf-8")
    assert text.endswith(simulation()), "python -m benchmarks.scaling --write"
    assert all(f"{n} ranks" in text for n in RANKS[1:])


@given(networks, ranks)
def test_more_gpus_are_never_more_than_so_many_times_faster(recipe, count):
    assert efficiency(recipe, count) <= 1 + 1e-12
    assert efficiency(recipe, 1) == pytest.approx(1)


@settings(max_examples=50)
@given(
    networks,
    st.sampled_from([2, 8, 16, 64]),
    st.sampled_from(["inside", "outside", "flops", "latency_inside"]),
)
def test_a_better_cluster_is_not_slower(recipe, count, field):
    better = 2.0 if field in ("inside", "outside", "flops") else 0.5
    changed = replace(H100S, **{field: better * getattr(H100S, field)})
    assert simulated(recipe, count, changed).computing <= simulated(recipe, count).computing
    assert all_reduce_seconds(1e9, count, changed) <= all_reduce_seconds(1e9, count)


def test_a_ring_takes_what_the_formula_says():
    """Bandwidth 1 byte a second and no latency: 2 (n - 1) / n bytes, in a node and between nodes on an eighth each."""
    plain = Cluster(inside=1.0, outside=1.0, latency_inside=0.0, latency_outside=0.0)
    assert all_reduce_seconds(80, 2, plain) == pytest.approx(80)
    assert all_reduce_seconds(80, 8, plain) == pytest.approx(140)
    assert all_reduce_seconds(80, 16, plain) == pytest.approx(140 + 10)
    slow = Cluster(inside=1e30, outside=1e30, latency_inside=1.0, latency_outside=100.0)
    assert all_reduce_seconds(80, 8, slow) == pytest.approx(14)
    assert all_reduce_seconds(80, 32, slow) == pytest.approx(14 + 600)


def test_sums_hide_behind_the_backward_pass_but_for_the_last_bucket():
    recipe = NETWORKS["DeiT-B"]
    hidden = simulated(recipe, 8)
    assert hidden.exposed == pytest.approx(all_reduce_seconds(H100S.last_bucket, 8))
    slow = replace(H100S, inside=1e9)
    bare = simulated(recipe, 8, slow)
    total = all_reduce_seconds(4 * parameters(recipe), 8, slow)
    assert bare.exposed == pytest.approx(total - slow.backward * bare.computing)


def test_without_anything_to_wait_for_the_step_is_a_fair_share():
    ideal = Cluster(inside=1e30, outside=1e30, latency_inside=0.0, latency_outside=0.0, host=0.0, jitter=0.0)
    assert efficiency(NETWORKS["Swin-B"], 64, ideal) == pytest.approx(1)
    assert simulated(NETWORKS["Swin-B"], 64, ideal).whole >= simulated(NETWORKS["Swin-B"], 64, ideal).loading

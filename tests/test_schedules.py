"""Static and staged alpha, and the learning rate against the official schedulers."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st
import pytest
from timm.scheduler import CosineLRScheduler
import torch

from dcvit.baselines import DEIT_B, DEIT_T, SWIN_B, SWIN_T, deit_at_384, swin_at_384
from dcvit.recipe import Periods, StagedAlpha, StaticAlpha
from dcvit.schedules import cosine_after_warmup, learning_rate, staged_alpha, static_alpha

unit = st.floats(0, 1)
UPDATES = 1251  # an epoch of ImageNet-1k in batches of 1024


@st.composite
def periods(draw):
    """Any two borders, the degenerate ones often."""
    borders = sorted(draw(st.sampled_from([0.0, 1.0]) | unit) for _ in range(2))
    return Periods(borders[0], draw(st.sampled_from(borders)))


# --- static alpha --------------------------------------------------------------------------


@given(unit, periods())
def test_static_alpha_stays_between_its_first_and_its_last_value(progress, at):
    assert 0.05 <= static_alpha(progress, at) <= 0.8 + 1e-15


@given(unit, unit, periods())
def test_static_alpha_never_falls(one, other, at):
    assert static_alpha(min(one, other), at) <= static_alpha(max(one, other), at) + 1e-15


@given(unit, unit)
def test_static_alpha_has_no_jump(one, other):
    """Lipschitz over a grid, with the steepest slope of the cosine and of the line as the constant."""
    begin, end = sorted((one, other))
    assume(end - begin > 0.01 and end < 0.99)
    steepest = max(0.45 * torch.pi / 2 / (end - begin), 0.3 / (1 - end))
    grid = sorted({k / 200 for k in range(201)} | {begin, end})
    for t, later in pairwise(grid):
        rise = static_alpha(later, Periods(begin, end)) - static_alpha(t, Periods(begin, end))
        assert rise <= steepest * (later - t) + 1e-12


@given(unit, unit)
def test_static_alpha_has_the_printed_values_at_the_borders(one, other):
    begin, end = sorted((one, other))
    assume(0 < begin < end < 1)
    at = Periods(begin, end)
    assert static_alpha(0.0, at) == 0.05
    assert static_alpha(begin, at) == 0.05
    assert static_alpha(end, at) == 0.5
    assert static_alpha(1.0, at) == pytest.approx(0.8, abs=1e-15)


def test_static_alpha_rises_as_half_a_cosine_and_then_as_a_line():
    at = Periods(0.2, 0.6)
    quarter = 0.05 + 0.45 * (1 - 0.5**0.5) / 2
    found = [static_alpha(t, at) for t in (0.1, 0.3, 0.4, 0.5, 0.7, 0.8)]
    assert found == pytest.approx([0.05, quarter, 0.275, 0.55 - quarter, 0.575, 0.65], abs=1e-12)


@given(unit)
def test_degenerate_periods_leave_out_what_has_no_length(progress):
    exploration_only = static_alpha(progress, Periods(0.0, 0.0))
    assert exploration_only == pytest.approx(0.5 + 0.3 * progress, abs=1e-15)
    formation_only = static_alpha(progress, Periods(1.0, 1.0))
    assert formation_only == (0.05 if progress < 1 else pytest.approx(0.8, abs=1e-15))
    no_growth = static_alpha(progress, Periods(0.5, 0.5))
    assert no_growth == (0.05 if progress < 0.5 else pytest.approx(0.5 + 0.6 * (progress - 0.5), abs=1e-15))


@given(unit, periods(), unit)
def test_a_rule_of_one_value_is_constant(progress, at, alpha):
    rule = StaticAlpha(formation=alpha, exploration=alpha, final=alpha)
    assert static_alpha(progress, at, rule=rule) == alpha


# --- staged alpha --------------------------------------------------------------------------


@given(unit, periods())
def test_each_period_has_its_own_alpha(progress, at):
    alpha = staged_alpha(progress, at, StagedAlpha(formation=1.0, growth=2.0, exploration=3.0))
    assert (alpha == 1) == (progress < at.formation_end)
    assert (alpha == 3) == (progress >= at.exploration_start)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_training_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        static_alpha(progress, Periods())
    with pytest.raises(ValueError, match="progress"):
        staged_alpha(progress, Periods(), StagedAlpha())


# --- the learning rate ---------------------------------------------------------------------


def optimizer(peak):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)


def test_deit_has_the_official_rates():
    epochs = (0, 1, 2, 5, 6, 150, 299)
    rates = [f"{learning_rate(DEIT_T, epoch * UPDATES, UPDATES):.3e}" for epoch in epochs]
    assert rates == [
        *("1.000e-06", "1.000e-06", "2.008e-04", "8.002e-04"),
        *("9.993e-04", "5.102e-04", "1.011e-05"),
    ]


@pytest.mark.parametrize("recipe", [DEIT_T, DEIT_B, deit_at_384(DEIT_B)], ids=["T", "B", "B-384"])
def test_deit_has_the_rates_of_timms_scheduler_stepped_after_each_epoch(recipe):
    rate = recipe.schedule.peak * recipe.batch / 512
    stepped = optimizer(rate)
    scheduler = CosineLRScheduler(
        stepped, t_initial=recipe.epochs, lr_min=recipe.schedule.final, warmup_t=5, warmup_lr_init=1e-6
    )
    for epoch in range(recipe.epochs):
        for update in (epoch * UPDATES, epoch * UPDATES + UPDATES - 1):
            assert learning_rate(recipe, update, UPDATES) == pytest.approx(
                stepped.param_groups[0]["lr"], rel=1e-12
            )
        scheduler.step(epoch)


@pytest.mark.parametrize(
    ("recipe", "peak", "warmup", "final", "warmup_epochs"),
    [(SWIN_T, 1e-3, 1e-6, 1e-5, 20), (swin_at_384(SWIN_B), 4e-5, 4e-8, 4e-7, 5)],
    ids=["T", "B-384"],
)
def test_swin_has_the_rates_of_timms_scheduler_stepped_after_each_update(
    recipe, peak, warmup, final, warmup_epochs
):
    updates = 7  # an epoch; short, so that every update can be compared
    stepped = optimizer(peak)
    scheduler = CosineLRScheduler(
        stepped,
        t_initial=recipe.epochs * updates,
        lr_min=final,
        warmup_t=warmup_epochs * updates,
        warmup_lr_init=warmup,
        t_in_epochs=False,
        warmup_prefix=False,
    )
    for update in range(recipe.epochs * updates):
        found = learning_rate(recipe, update, updates)
        assert found == pytest.approx(stepped.param_groups[0]["lr"], rel=1e-12)
        scheduler.step_update(update)


@given(st.integers(0, 300 * UPDATES - 1), st.sampled_from([128, 256, 2048]))
def test_deit_scales_its_peak_with_the_batch_and_nothing_else(update, batch):
    """The rate is affine in the peak: start and end stay, the rest moves with batch / 1024."""
    official, peakless = DEIT_T.schedule, replace(DEIT_T.schedule, peak=0.0)
    rate, scaled, base = (
        learning_rate(recipe, update, UPDATES)
        for recipe in (DEIT_T, replace(DEIT_T, batch=batch), replace(DEIT_T, schedule=peakless))
    )
    assert official.scales == "peak"
    assert scaled == pytest.approx(base + (rate - base) * batch / 1024, rel=1e-9)


@given(st.integers(0, 300 * UPDATES - 1), st.sampled_from([128, 256, 2048]))
def test_swin_scales_every_rate_with_the_batch(update, batch):
    scaled = learning_rate(replace(SWIN_T, batch=batch), update, UPDATES)
    assert scaled == pytest.approx(learning_rate(SWIN_T, update, UPDATES) * batch / 1024, rel=1e-12)


def test_deit_fine_tunes_at_a_constant_rate_after_the_warm_up():
    recipe = deit_at_384(DEIT_B)
    rates = [learning_rate(recipe, epoch * 10, 10) for epoch in range(30)]
    assert rates[:3] == pytest.approx([1e-6, 1e-6, 1.8e-6])
    assert rates[6:] == pytest.approx([5e-6] * 24)


@given(st.integers(1, 50), st.integers(0, 20), st.integers(0, 60))
def test_the_rate_lies_between_the_given_ones(total, warmup, t):
    assume(t <= total)
    rate = cosine_after_warmup(t, total=total, warmup=warmup, peak=1.0, begin=0.1, final=0.01)
    assert 0.01 <= rate <= 1
    assert rate >= 0.1 or t >= warmup

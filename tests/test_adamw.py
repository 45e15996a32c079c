"""The update against torch's own optimiser, to the bit, and an update that must not happen."""

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch
from torch import nn

from dcvit.adamw import AdamW
from dcvit.devices import prepare

SOUND, UNSOUND = torch.tensor(True), torch.tensor(False)
BETAS, EPS = (0.9, 0.98), 1e-7


def parameters(seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (7,), (4, 3, 3, 3), (1,), (33, 17)]
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]


def groups_of(values):
    return [{"params": values[:3], "weight_decay": 0.1}, {"params": values[3:], "weight_decay": 0.0}]


def give_gradients(values, seed):
    rng = torch.Generator().manual_seed(seed)
    for value in values:
        value.grad = torch.randn(value.shape, generator=rng)


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    sound=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_is_torchs_fused_adamw_to_the_bit_without_the_updates_that_are_not_sound(rates, sound):
    mine, theirs = parameters(), parameters()
    ours = AdamW(groups_of(mine), betas=BETAS, eps=EPS)
    torchs = torch.optim.AdamW(groups_of(theirs), lr=0.0, betas=BETAS, eps=EPS, fused=True)
    for number, rate in enumerate(rates):
        give_gradients(mine, number)
        ours.step(rate, torch.tensor(sound[number]))
        assert all(value.grad is None for value in mine)
        if sound[number]:
            give_gradients(theirs, number)
            for group in torchs.param_groups:
                group["lr"] = rate
            torchs.step()
    assert all(map(torch.equal, mine, theirs))
    moments = [torchs.state[value] for value in theirs if value in torchs.state]
    tensors = ours.tensors()
    assert tensors["count"] == sum(sound[: len(rates)])
    for number, state in enumerate(moments):
        assert torch.equal(tensors[f"{number}.exp_avg"], state["exp_avg"])
        assert torch.equal(tensors[f"{number}.exp_avg_sq"], state["exp_avg_sq"])


def test_not_even_a_gradient_that_is_not_finite_leaves_a_trace_of_an_update_that_is_not_sound():
    values = parameters()
    ours = AdamW(groups_of(values), betas=BETAS, eps=EPS)
    give_gradients(values, 0)
    ours.step(0.1, SOUND)
    before = {name: value.clone() for name, value in ours.tensors().items()}, [*map(torch.clone, values)]
    give_gradients(values, 1)
    values[0].grad.fill_(float("nan"))
    ours.step(0.1, UNSOUND)
    assert all(torch.equal(value, before[0][name]) for name, value in ours.tensors().items())
    assert all(map(torch.equal, values, before[1]))


def test_a_group_without_parameters_is_none():
    values = parameters()
    ours = AdamW(
        [{"params": values, "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}], betas=BETAS, eps=EPS
    )
    give_gradients(values, 0)
    ours.step(0.1, SOUND)
    assert len(ours.groups) == 1


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_what_is_put_back_goes_on_to_the_bit_whatever_the_layout_of_the_weights(rate):
    """A file holds all tensors row after row; moments must lie as the weights do, or each would meet another's."""

    def network():
        torch.manual_seed(0)
        return prepare(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)), torch.device("cpu")
        )

    def begin(model):
        return AdamW([{"params": [*model.parameters()], "weight_decay": 0.1}], betas=BETAS, eps=EPS)

    def update(model, optimizer, seed):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        model(images).square().mean().backward()
        optimizer.step(rate, SOUND)

    with torch.random.fork_rng(devices=[]):
        first, second = network(), network()
    whole, resumed = begin(first), begin(second)
    assert not first[0].weight.is_contiguous()
    update(first, whole, 0)
    second.load_state_dict(first.state_dict())
    resumed.put_back(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in whole.tensors().items()}
    )
    update(first, whole, 1)
    update(second, resumed, 1)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert all(map(torch.equal, whole.tensors().values(), resumed.tensors().values()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"betas": (2.0, 0.9)}, "Invalid beta parameter at index 0: 2.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"eps": float("nan")}, "Invalid epsilon: nan"),
    ],
)
def test_impossible_numbers_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        AdamW(groups_of(parameters()), **{"betas": BETAS, "eps": EPS, **wrong})

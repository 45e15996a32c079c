"""How a network lies on a device, which GPUs are free as a made-up nvidia-smi says, and which of them a run gets."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dcvit import executing, launch
from dcvit.checkpoint import save_weights
from dcvit.devices import autocast, free_gpus, prepare
from dcvit.launch import make_all
from dcvit.models import build
from dcvit.runs import Outcome, Place, Watcher, all_runs
from dcvit.sources import Source
from tests.helpers import RESNET, SWIN, VIT, tiny

UUIDS = ("11111111-aaaa", "22222222-bbbb", "33333333-cccc")


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Three GPUs; a function that sets what nvidia-smi prints, or does."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(UUIDS))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=UUIDS[gpu]))
    monkeypatch.setenv("PATH", str(tmp_path))

    def smi(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return smi


@pytest.mark.parametrize(
    ("busy", "free"),
    [((), (0, 1, 2)), ((1,), (0, 2)), ((0, 2), (1,)), ((0, 0, 1), (2,))],
)
def test_gpus_on_which_nobody_computes_are_free(busy, free, smi):
    smi("\n".join(f"echo GPU-{UUIDS[gpu]}" for gpu in busy))
    assert free_gpus() == free


def test_where_all_are_busy_or_nobody_knows_all_are_taken(smi):
    assert free_gpus() == (0, 1, 2)  # no nvidia-smi at all
    smi("exit 9")
    assert free_gpus() == (0, 1, 2)
    smi("\n".join(f"echo GPU-{uuid}" for uuid in UUIDS))
    assert free_gpus() == (0, 1, 2)


def place(tmp_path, **changes):
    return Place(Source("folder", "0123456789abcdef", ()), tmp_path, "cpu", 0, **changes)


def tell_gpus(pipe, place):
    """What a process does: each run ends with the GPUs that its process was given."""
    launch.execute = lambda run, place, observe, stopped: Outcome(record=place.gpus)
    launch._work(pipe, place)


@pytest.mark.parametrize(
    ("many", "gpus", "jobs", "given"),
    [(1, (0, 2), 2, {(0,), (2,)}), (2, (0, 1, 4, 5), 2, {(0, 1), (4, 5)}), (1, (), 2, {()})],
)
def test_runs_side_by_side_have_gpus_of_their_own(many, gpus, jobs, given, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_work", tell_gpus)
    runs = all_runs([tiny(batch=batch) for batch in (1, 2, 3, 4)], (0, 1))
    outcomes = make_all(runs, place(tmp_path, gpus_per_run=many), jobs=jobs, watcher=Watcher(), gpus=gpus)
    assert {outcome.record for outcome in outcomes.values()} <= given
    assert len(outcomes) == 8


def test_a_run_alone_has_the_first_free_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "execute", lambda run, place, *_: Outcome(record=place.gpus))
    (outcome,) = make_all(
        all_runs([tiny()], (0,)), place(tmp_path), jobs=1, watcher=Watcher(), gpus=(2, 3)
    ).values()
    assert outcome.record == (2,)


@pytest.mark.parametrize(
    ("gpus", "member", "environment", "expected"),
    [
        ((), False, {}, "cuda"),
        ((3,), False, {}, "cuda:3"),
        ((), True, {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "cuda:1"),
        ((4, 6), True, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:6"),
        ((), False, {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "cuda"),
    ],
)
def test_each_process_has_a_gpu_of_its_own(gpus, member, environment, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    here = place(tmp_path, gpus=gpus, is_member=member, gpus_per_run=len(gpus) or 1)
    assert executing._device(replace(here, device=None)) == torch.device(expected)


# --- a network on a device -----------------------------------------------------------------

CPU = torch.device("cpu")


@pytest.mark.parametrize("backbone", [VIT, SWIN, RESNET], ids=["vit", "swin", "resnet"])
def test_a_prepared_network_computes_the_same_and_is_saved_to_the_same_bytes(backbone, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(tiny(backbone=backbone)).eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, bytes_before = model(images), save_weights(tmp_path / "before", model.state_dict())
        prepared = prepare(model, CPU)
        torch.testing.assert_close(prepared(images), before)
    assert save_weights(tmp_path / "after", prepared.state_dict()) == bytes_before
    assert not any(getattr(module, "fused_attn", False) for module in prepared.modules())


def test_only_convolutional_networks_have_their_channels_last():
    def last(backbone):
        weights = [
            value for value in prepare(build(tiny(backbone=backbone)), CPU).parameters() if value.ndim == 4
        ]
        return [
            weight.is_contiguous(memory_format=torch.channels_last)
            for weight in weights
            if not weight.is_contiguous() or min(weight.shape[1:]) > 1
        ]

    assert all(last(RESNET))
    assert not any(last(VIT))
    assert not any(last(SWIN))


def test_float32_is_no_autocast_at_all_and_bfloat16_is():
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bfloat16"):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")

"""A batch of 32 is the same update in one process, in two, in four, and in pieces (gloo, float32, no drop path)."""

import json
import socket
import subprocess

from hypothesis import given
from hypothesis import strategies as st
import pytest
from safetensors.torch import load_file
import torch

from dcvit.evaluating import share_of
from dcvit.processes import ALONE, World, given_rank
from dcvit.sources import from_folder
from dcvit.training import fit
from tests.helpers import environment, image_folder, python
from tests.ranks import RECIPES

CPU = torch.device("cpu")
DIVISIONS = {  # processes, images a piece
    "2x16": (2, None),
    "4x8": (4, None),
    "1x4x8": (1, 8),
    "2x2x8": (2, 8),
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wanted():
    for recipe in RECIPES:
        for division, (processes, at_most) in DIVISIONS.items():
            if recipe == "vit" or division in ("2x16", "4x8"):
                yield recipe, division, processes, at_most


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What each process says of each run, (recipe, division) -> [of rank 0, of rank 1, ...]; "1x32" is undivided."""
    folder = tmp_path_factory.mktemp("ranks")
    image_folder(folder / "images", train=24, val=3)
    scenarios = [
        {"recipe": recipe, "name": f"{recipe}-1x32", "processes": 1, "at_most": None, "port": 0}
        for recipe in RECIPES
    ]
    for recipe, division, processes, at_most in wanted():
        name = f"{recipe}-{division}"
        scenarios.append(
            {"recipe": recipe, "name": name, "processes": processes, "at_most": at_most, "port": free_port()}
        )
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    ranks = []
    for rank in range(4):
        with open(folder / f"{rank}.log", "w") as log:
            command = python("-m", "tests.ranks", rank, folder)
            ranks.append(subprocess.Popen(command, env=environment() | {"DCVIT_TIMEOUT": "40"}, stderr=log))
    try:
        codes = [rank.wait(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert codes == [0] * 4, "\n".join((folder / f"{rank}.log").read_text() for rank in range(4))
    found = {
        scenario["name"]: [
            json.loads((folder / f"{scenario['name']}.{rank}.json").read_text())
            for rank in range(scenario["processes"])
        ]
        for scenario in scenarios
    }
    return folder, found


@pytest.mark.parametrize(("recipe", "division"), [each[:2] for each in wanted()])
def test_however_a_batch_is_divided_the_losses_and_alphas_are_the_same(recipe, division, made):
    folder, found = made
    (alone,), others = found[f"{recipe}-1x32"], found[f"{recipe}-{division}"]
    # AdamW makes a step of a gradient that is nothing but rounding, and a ResNet of 8 px has some among its millions;
    # how much comes of it hangs on the processor
    atol, rel = (1e-3, 5e-4) if recipe == "resnet" else (2e-4, 1e-4)
    for other in others:  # every process knows all of it
        assert len(other["updates"]) == len(alone["updates"]) == 6
        for here, there in zip(other["updates"], alone["updates"], strict=True):
            assert here["loss"] == pytest.approx(there["loss"], abs=1e-5)
            assert here["alpha"] == there["alpha"]
        for here, there in zip(other["evolution"], alone["evolution"], strict=True):
            assert here["histogram"] == there["histogram"]
            assert here["gradient_norm"] == pytest.approx(there["gradient_norm"], rel=rel)
        assert other["correct"] == alone["correct"]
    for name in ("last", "ema"):
        here, there = (
            load_file(next((folder / f"{recipe}-{each}").glob(f"ledger/*/{name}.safetensors")))
            for each in (division, "1x32")
        )
        for parameter, value in there.items():
            torch.testing.assert_close(here[parameter], value, atol=atol, rtol=1e-3, msg=parameter)


def test_the_alphas_are_those_of_something_that_moves(made):
    """Else the equality above would mean nothing."""
    for recipe in RECIPES:
        alphas = [float.fromhex(each["alpha"]) for each in made[1][f"{recipe}-1x32"][0]["updates"]]
        assert len(set(alphas)) >= 3
        assert len({each["loss"] for each in made[1][f"{recipe}-1x32"][0]["updates"]}) == 6


def test_the_record_says_how_the_batch_was_divided(made):
    folder = made[0]
    for division, (processes, _) in DIVISIONS.items():
        (path,) = (folder / f"vit-{division}").glob("ledger/*/record.json")
        facts = json.loads(path.read_text())["environment"]
        pieces = {"1x4x8": 4, "2x2x8": 2}.get(division, 1)
        assert (facts["processes"], facts["pieces"]) == (processes, pieces)


def test_only_one_process_writes(made):
    for division in DIVISIONS:
        assert len(list((made[0] / f"vit-{division}").glob("ledger/*"))) == 1


def test_alone_without_a_world_is_the_undivided_run(made):
    """The run of the scenarios is what `fit` does in any process, to the bit."""
    folder, found = made
    record = fit(RECIPES["vit"], 0, from_folder(folder / "images"), folder / "here", CPU)
    assert record.evolution[-1]["loss"] == found["vit-1x32"][0]["evolution"][-1]["loss"]


@given(images=st.integers(1, 200), size=st.integers(1, 9))
def test_shares_of_the_test_images_are_disjoint_and_all_of_them(images, size):
    shares = [share_of(images, World(rank=rank, size=size)) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(images))
    assert max(map(len, shares)) == len(shares[0])


def test_alone_nothing_is_sent():
    values = torch.ones(3)
    ALONE.sum(values).wait()
    ALONE.share([values])
    assert values.tolist() == [1, 1, 1]
    assert ALONE.any(True) is True
    assert ALONE.any(False) is False
    assert ALONE.told("so") == "so"
    assert ALONE.leads


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (1, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, (3, 4, 1)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),
    ],
)
def test_who_one_is_stands_in_the_environment(variables, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert given_rank() == expected

"""Runs of two processes of which one dies or hangs: all stop, the run is started again, and ends to the bit."""

from dataclasses import replace
import json
import os
from pathlib import Path
import re

import pytest

from dcvit import ledger
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from tests.faults import child
from tests.faults.child import finish, start
from tests.helpers import image_folder, tiny, without_times

RUN = Run(tiny(batch=6, groups=2, epochs=3, ema_decay=0.9), 0)  # 6 updates
ALONE = {"OMP_NUM_THREADS": "1", "DCVIT_TIMEOUT": "60"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The record of two processes that nobody disturbs."""
    place = Place(source, tmp_path_factory.mktemp("undisturbed"), "cpu", 0, gpus_per_run=2)
    told = executed(place, child.calm_member, place.out)
    assert told["record"], told
    return record_at(place)


def record_at(place):
    return ledger.find(place.out, RUN.recipe, RUN.seed, place.source.fingerprint)


def executed(place, member, folder, *, seconds=120, **environment):
    """What comes of a run whose processes are each a `member`, and what they printed."""
    answer, log = folder / "answer.json", folder / "log"
    process = start(child.logged, log, child.watched, RUN, place, member, ALONE | environment, answer)
    assert finish(process, seconds=seconds) == 0, log.read_text()
    return {**json.loads(answer.read_text()), "log": log.read_text(errors="replace")}


def assert_nobody_is_left(place):
    """No process has the folder's name in its command line or environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue
        assert os.fsencode(f"DCVIT_TEST={place.out}") not in environment, path.parent.name


def test_a_process_that_dies_is_started_again_and_the_run_ends_to_the_bit(source, expected, tmp_path):
    place = Place(source, tmp_path / "out", "cpu", 0, gpus_per_run=2, save_every=0.0)
    place.out.mkdir()
    told = executed(place, child.dying_member, tmp_path, DCVIT_TEST=str(place.out))
    assert (place.out / "happened").exists()
    assert told["record"], told
    assert told["seconds"] < 120
    record = record_at(place)
    assert record.environment["processes"] == 2
    assert without_times(record) == without_times(expected)
    assert {path.name for path in place.folder_of(RUN).iterdir()} == {"record.json", *record.weights}
    assert_nobody_is_left(place)


def test_a_process_that_hangs_is_named_after_the_time_out_and_the_run_ends_to_the_bit(
    source, expected, tmp_path
):
    place = Place(source, tmp_path / "out", "cpu", 0, gpus_per_run=2, save_every=0.0)
    place.out.mkdir()
    told = executed(place, child.hanging_member, tmp_path, DCVIT_TEST=str(place.out), DCVIT_TIMEOUT="5")
    assert (place.out / "happened").exists()
    assert re.search(r"RankLost: process 0 of 2 lost another one: .*[Rr]anks? 1", told["log"]), told["log"]
    assert told["record"], told
    assert without_times(record_at(place)) == without_times(expected)
    assert_nobody_is_left(place)


def test_what_two_processes_make_is_what_one_makes_but_for_rounding(source, expected, tmp_path):
    """Else the equalities above might be those of two runs that did nothing."""
    one = Place(source, tmp_path / "one", "cpu", 0)
    assert finish(start(child.trains_paced, RUN, one, 0.0)) == 0
    alone = record_at(one)
    assert alone.evolution[-1]["loss"] == pytest.approx(expected.evolution[-1]["loss"], rel=1e-3)
    assert replace(alone, environment={}) != replace(expected, environment={})

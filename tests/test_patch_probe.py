"""The file of a patch probe: what is written is read again, and what can't be trusted is refused."""

from dataclasses import asdict, replace
import json
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit.ledger import UnusableRecord
from dcvit.patch_probe import FILE, KS, LAYOUT, WAYS, PatchProbe, as_text, metrics, read, write
from tests.helpers import record_of, tiny

SHA = "5e" * 32
RECORD = record_of(tiny(), 0, 70.0, weights={"last.safetensors": "1a" * 32, "best.safetensors": SHA})


def probe_of(scores, **changes):
    values = dict(
        run_id=RECORD.run_id,
        weights=SHA,
        images=12,
        regions=16,
        seed=3,
        ks=tuple(scores["random"]),
        scores=scores,
        environment={"versions": {"torch": "2.9"}, "device": "cpu", "precision": "float32", "commit": None},
        seconds=1.5,
    )
    return PatchProbe(**{**values, **changes})


def made_up(ks=KS):
    """A different number in every place but k = 0, which the ways share."""
    return {
        way: {
            k: {"p": 0.9 - k * (0.01 + place / 1000), "top1": 80.0 - k * (place + 1)}
            if k
            else {"p": 0.9, "top1": 80.0}
            for k in ks
        }
        for place, way in enumerate(WAYS)
    }


PROBE = probe_of(made_up())


@st.composite
def probes(draw):
    ks = sorted({0, *draw(st.lists(st.integers(1, 200), max_size=4))})
    at = st.fixed_dictionaries({"p": st.floats(0, 1), "top1": st.floats(0, 100)})
    whole = draw(at)
    scores = {way: {k: draw(at) if k else whole for k in ks} for way in WAYS}
    return probe_of(scores, seed=draw(st.integers(0, 2**63)), regions=200)


@given(probes())
def test_what_is_written_is_read_again(tmp_path_factory, probe):
    folder = tmp_path_factory.mktemp("run")
    write(folder, probe)
    assert read(folder, RECORD) == probe
    assert [path.name for path in folder.iterdir()] == ["patch_probe.json"]


def test_no_file_is_no_probe(tmp_path):
    assert read(tmp_path, RECORD) is None
    assert read(tmp_path / "nowhere", RECORD) is None


def test_a_second_probe_takes_the_place_of_the_first(tmp_path):
    write(tmp_path, PROBE)
    write(tmp_path, replace(PROBE, seed=9))
    assert read(tmp_path, RECORD).seed == 9


# --- what can't be trusted -----------------------------------------------------------------


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write(tmp_path, PROBE)
    whole = (tmp_path / FILE).read_bytes()
    for length in range(0, len(whole) - 2, 7):
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(UnusableRecord, match=r"patch_probe\.json is cut off or damaged"):
            read(tmp_path, RECORD)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnusableRecord, match="is cut off or damaged"):
        read(tmp_path, RECORD)


@pytest.mark.parametrize("content", [[], "text", {}, {"layout": LAYOUT + 1}, {**asdict(PROBE), "layout": 0}])
def test_another_layout_is_refused(content, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(
        UnusableRecord, match=rf"has layout .*; this version writes and reads layout {LAYOUT}"
    ):
        read(tmp_path, RECORD)


@pytest.mark.parametrize("weights", [{}, {"best.safetensors": "00" * 32}, {"last.safetensors": SHA}])
def test_a_probe_of_other_weights_is_refused(weights, tmp_path):
    write(tmp_path, PROBE)
    with pytest.raises(
        UnusableRecord, match=r"other weights than the best\.safetensors that the record names"
    ):
        read(tmp_path, replace(RECORD, weights=weights))


def edited(folder, edit):
    """The made-up probe's file after an edit."""
    facts = json.loads(json.dumps(asdict(PROBE)))
    edit(facts)
    (folder / FILE).write_text(json.dumps(facts))


def put(value, *path):
    """An edit that puts a value in a place."""

    def edit(facts):
        for name in path[:-1]:
            facts = facts[name]
        facts[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda facts: facts.pop("seconds"), "lacks fields or has too many: seconds"),
        (put(1, "more"), "lacks fields or has too many: more"),
        (put([1, 5], "ks"), r"says that k was \[1, 5\]"),
        (put([0, "1"], "ks"), "says that k was"),
        (put(None, "ks"), "says that k was None"),
        (put({}, "scores"), "has no number attended/0/p"),
        (put([], "scores"), "has no number attended/0/p"),
        (put([0, 1, 7], "ks"), "has no number attended/7/p"),
        (lambda facts: facts["scores"]["least"]["5"].pop("top1"), "has no number least/5/top1"),
        (put("a", "scores", "random", "1", "p"), "has no number random/1/p"),
        (put(1.01, "scores", "random", "1", "p"), "has random/1/p = 1.01: 0 to 1 is possible"),
        (put(-0.5, "scores", "least", "10", "top1"), "has least/10/top1 = -0.5: 0 to 100 is possible"),
        (put(100.5, "scores", "least", "10", "top1"), "has least/10/top1 = 100.5"),
        (put(math.nan, "scores", "attended", "0", "top1"), "has attended/0/top1 = nan"),
    ],
)
def test_a_file_with_something_missing_or_impossible_is_refused(edit, words, tmp_path):
    edited(tmp_path, lambda facts: None)
    assert read(tmp_path, RECORD) == PROBE
    edited(tmp_path, edit)
    with pytest.raises(UnusableRecord, match=words):
        read(tmp_path, RECORD)


def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    write(tmp_path, PROBE)
    scores = made_up()
    scores["random"][5]["p"] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path, probe_of(scores))
    assert read(tmp_path, RECORD) == PROBE


# --- its numbers ---------------------------------------------------------------------------


def test_every_number_has_its_name():
    found = metrics(PROBE)
    names = {f"{way}/{k}/{what}" for way in WAYS for k in (0, 1, 5, 10) for what in ("p", "top1")}
    losses = {
        f"{way}/{k}/{what}_loss"
        for way in ("attended", "random", "least")
        for k in (1, 5, 10)
        for what in ("p", "top1")
    }
    assert found.keys() == names | losses
    assert found["attended/10/top1"] == 70.0
    assert found["random/5/top1"] == 70.0
    assert found["least/1/top1"] == 77.0
    assert found["least/10/p"] == pytest.approx(0.78)
    assert found["random/10/p_loss"] == pytest.approx(0.11)
    assert found["least/5/top1_loss"] == 15.0


@given(probes())
def test_what_is_lost_and_what_is_left_add_up_to_the_whole(probe):
    found = metrics(probe)
    for way in WAYS:
        for what in ("p", "top1"):
            assert found[f"{way}/0/{what}"] == found[f"attended/0/{what}"]
            for k in probe.ks[1:]:
                left, lost = found[f"{way}/{k}/{what}"], found[f"{way}/{k}/{what}_loss"]
                assert left + lost == pytest.approx(found[f"{way}/0/{what}"])


def test_the_numbers_know_their_kinds():
    from dcvit.quantities import kind_of

    assert {kind_of(name).unit for name in metrics(PROBE)} == {"%", ""}


def test_the_text_has_a_line_for_each_k():
    head, _, *table = as_text(PROBE).splitlines()
    assert head.startswith(
        f"{RECORD.run_id}, weights 5e5e5e5e5e5e: 12 images of 16 regions, seed 3, float32 on cpu"
    )
    assert table[0].split("  ")[-1].strip() == "least attended"
    assert [line.split() for line in table[2:]] == [
        ["0", "0.900", "80.00", "0.900", "80.00", "0.900", "80.00"],
        ["1", "0.890", "79.00", "0.889", "78.00", "0.888", "77.00"],
        ["5", "0.850", "75.00", "0.845", "70.00", "0.840", "65.00"],
        ["10", "0.800", "70.00", "0.790", "60.00", "0.780", "50.00"],
    ]
    assert len({len(line) for line in table}) == 1

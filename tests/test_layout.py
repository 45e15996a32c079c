"""However a batch is divided, every sample is in one piece, with its partner."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st
import pytest

from dcvit.baselines import DEIT_T
from dcvit.layout import Piece, pieces_of, possible_processes, smallest_piece, splits_groups
from tests.helpers import tiny

sizes = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24])


def recipe_of(groups, size, **changes):
    return tiny(batch=groups * size, groups=groups, **changes)


def divided(recipe, processes, at_most):
    """The pieces, or None where there are none."""
    try:
        return pieces_of(recipe, processes=processes, at_most=at_most)
    except ValueError:
        return None


@given(groups=sizes, size=sizes, processes=st.integers(1, 9), at_most=st.none() | st.integers(1, 200))
def test_pieces_are_a_partition_in_which_partners_meet(groups, size, processes, at_most):
    recipe = recipe_of(groups, size)
    pieces = divided(recipe, processes, at_most)
    assume(pieces is not None)
    assert len(pieces) == processes
    assert len({len(mine) for mine in pieces}) == 1, "all have equally many passes to make"
    flat = [piece for mine in pieces for piece in mine]
    assert sorted(position for piece in flat for position in piece.positions) == list(range(recipe.batch))
    assert len({len(piece) for piece in flat}) == 1
    assert len(flat[0]) <= (at_most or recipe.batch)
    for piece in flat:
        assert {position // size for position in piece.positions} == set(piece.groups)
        per_group = len(piece) // len(piece.groups)
        for number, group in enumerate(piece.groups):
            inside = [
                position - group * size
                for position in piece.positions[number * per_group : (number + 1) * per_group]
            ]
            assert [size - 1 - position for position in inside] == inside[::-1], "a flip is the partner"
        if piece.inside is None:
            assert per_group == size
        else:
            assert len(piece.groups) == 1
            assert piece.positions == tuple(piece.groups.start * size + each for each in piece.inside)
            assert len(piece) < size


@given(
    groups=sizes,
    size=sizes,
    processes=st.integers(1, 9),
    at_most=st.integers(1, 200),
    more=st.integers(0, 50),
)
def test_more_room_never_takes_more_passes(groups, size, processes, at_most, more):
    recipe = recipe_of(groups, size)
    pieces = divided(recipe, processes, at_most)
    assume(pieces is not None)
    larger = divided(recipe, processes, at_most + more)
    assert len(larger[0]) <= len(pieces[0])
    if len(pieces[0]) > 1:  # as few as possible: those of the next larger kind have no room
        fewer = [larger for limit in range(recipe.batch + 1) if (larger := divided(recipe, processes, limit))]
        sizes = {len(each[0][0]) for each in fewer if len(each[0]) < len(pieces[0])}
        assert all(each > at_most for each in sizes)


@given(groups=sizes, size=sizes, processes=st.integers(1, 9))
def test_what_is_possible_is_what_can_be_divided(groups, size, processes):
    recipe = recipe_of(groups, size)
    assert (processes in possible_processes(recipe)) == (divided(recipe, processes, None) is not None)


@given(groups=sizes, size=sizes)
def test_the_smallest_piece_is_possible_and_no_smaller_one_is(groups, size):
    recipe = recipe_of(groups, size)
    smallest = smallest_piece(recipe)
    assert len(divided(recipe, 1, smallest)[0][0]) == smallest
    assert divided(recipe, 1, smallest - 1) is None or smallest == 1


def test_by_default_a_batch_is_one_piece():
    assert pieces_of(tiny(batch=4)) == [[Piece(range(1), (0, 1, 2, 3))]]
    assert pieces_of(tiny(batch=4, groups=2)) == [[Piece(range(2), (0, 1, 2, 3))]]
    assert not splits_groups(pieces_of(tiny(batch=4))[0])


def test_a_group_is_cut_so_that_first_and_last_stay_together():
    ((first,), (second,)) = pieces_of(tiny(batch=8), processes=2)
    assert first == Piece(range(1), (0, 1, 6, 7), (0, 1, 6, 7))
    assert second == Piece(range(1), (2, 3, 4, 5), (2, 3, 4, 5))
    assert splits_groups([first])


def test_the_official_recipe_is_divided_among_eight_by_whole_groups():
    pieces = pieces_of(DEIT_T, processes=DEIT_T.groups)
    assert [piece.groups for (piece,) in pieces] == [range(each, each + 1) for each in range(DEIT_T.groups)]
    assert all(piece.inside is None for (piece,) in pieces)
    assert {len(piece) for (piece,) in pieces} == {DEIT_T.batch // DEIT_T.groups}


@pytest.mark.parametrize(
    ("recipe", "processes", "at_most", "told"),
    [
        (
            tiny(batch=6, groups=2),
            4,
            None,
            "a batch of 6 in 2 mixing groups can't be divided among 4 processes: processes may be 1, 2; "
            "pieces of 3 images are the smallest",
        ),
        (
            tiny(batch=8),
            3,
            None,
            "a batch of 8 in 1 mixing groups can't be divided among 3 processes: processes may be 1, 2, 4; "
            "pieces of 2 images are the smallest",
        ),
        (
            tiny(batch=8),
            1,
            1,
            "a batch of 8 in 1 mixing groups can't be divided among 1 processes, at most 1 images at a time: "
            "processes may be 1, 2, 4; pieces of 2 images are the smallest",
        ),
        (
            replace(DEIT_T, batch=4, groups=1),
            8,
            None,
            "a batch of 4 in 1 mixing groups can't be divided among 8 processes: processes may be 1, 2; "
            "pieces of 2 images are the smallest",
        ),
    ],
)
def test_what_can_not_be_divided_says_what_can(recipe, processes, at_most, told):
    with pytest.raises(ValueError, match="can't be divided") as caught:
        pieces_of(recipe, processes=processes, at_most=at_most)
    assert str(caught.value) == told

"""How a batch is divided: among processes, and among the passes that one process makes. No torch.

The mixing groups of a recipe are the micro-batches of the official code, a process and an
accumulation step each. A piece is what goes through the network at once: some whole groups, or
a part of one group in which every sample still meets its partner. What is drawn belongs to a
group, and what is summed is summed over all pieces, so that every division trains the same recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dcvit.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a batch; `positions` are its samples, each group's in an order that a flip mirrors."""

    groups: range  # the mixing groups that it has samples of
    positions: tuple[int, ...]  # in the batch
    inside: tuple[int, ...] | None = None  # in the only group, if it is not whole

    def __len__(self) -> int:
        return len(self.positions)


def pieces_of(recipe: Recipe, *, processes: int = 1, at_most: int | None = None) -> list[list[Piece]]:
    """For each process the pieces that it takes one after the other, as few as `at_most` images a piece allow.

    Batch statistics are each group's own however many share a piece (`models.GroupNormalised`).
    Raises ValueError if the batch can't be divided so that every sample meets its partner.
    """
    limit = min(at_most or recipe.batch, recipe.batch)
    for passes in range(1, recipe.batch // processes + 1):
        total = passes * processes
        if recipe.batch <= limit * total and _divides(recipe, total):
            pieces = [_piece(recipe, number, total) for number in range(total)]
            return [pieces[rank * passes : (rank + 1) * passes] for rank in range(processes)]
    raise ValueError(
        f"a batch of {recipe.batch} in {recipe.groups} mixing groups can't be divided among {processes} "
        f"processes{f', at most {at_most} images at a time' if at_most else ''}: processes may be "
        f"{', '.join(map(str, possible_processes(recipe)))}; pieces of {smallest_piece(recipe)} images are the smallest"
    )


def possible_processes(recipe: Recipe, *, most: int = 64) -> list[int]:
    """How many processes can share a batch.

    >>> from dcvit.baselines import DEIT_T
    >>> possible_processes(DEIT_T, most=10)
    [1, 2, 4, 8]
    """

    def possible(count: int) -> bool:
        return any(_divides(recipe, count * passes) for passes in range(1, recipe.batch // count + 1))

    return [count for count in range(1, min(most, recipe.batch) + 1) if possible(count)]


def smallest_piece(recipe: Recipe) -> int:
    """The fewest images that can go through the network at once: a sample and its partner, or one that is its own."""
    return (
        1
        if recipe.batch == recipe.groups
        else 2
        if recipe.batch // recipe.groups % 2 == 0
        else (recipe.batch // recipe.groups)
    )


def splits_groups(pieces: Sequence[Piece]) -> bool:
    """Whether a group is not whole in a piece: batch statistics are then those of its part."""
    return any(piece.inside is not None for piece in pieces)


def _divides(recipe: Recipe, pieces: int) -> bool:
    groups, size = recipe.groups, recipe.batch // recipe.groups
    return groups % pieces == 0 or (pieces % groups == 0 and size % (2 * (pieces // groups)) == 0)


def _piece(recipe: Recipe, number: int, total: int) -> Piece:
    groups, size = recipe.groups, recipe.batch // recipe.groups
    if groups % total == 0:
        many = groups // total
        taken = range(number * many, (number + 1) * many)
        return Piece(taken, tuple(range(taken.start * size, taken.stop * size)))
    parts = total // groups
    group, part = divmod(number, parts)
    half = size // (2 * parts)
    first = range(part * half, (part + 1) * half)
    inside = (*first, *(size - 1 - position for position in reversed(first)))
    return Piece(range(group, group + 1), tuple(group * size + position for position in inside), inside)

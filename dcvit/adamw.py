"""AdamW (Loshchilov and Hutter 2019), torch's fused kernel without the frame around it.

`torch.optim.AdamW(fused=True)` to the bit, with one count of updates for all parameters instead of one each, and
without the bookkeeping that on a small network costs as much as the arithmetic. Whether to move is asked on the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters of one weight decay, and their moments in the same order and layout."""

    parameters: list[nn.Parameter]
    weight_decay: float
    means: list[Tensor]  # moving averages of the gradient
    squares: list[Tensor]  # and of its square


class AdamW:
    """The moments of a network's parameters, and the update."""

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        """Zero moments; `groups` are those of `models.decay_groups`. ValueError if betas or eps are impossible."""
        for index, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(
                    f"Invalid beta parameter at index {index}: {beta}: a number in [0, 1) is needed"
                )
        if not eps >= 0:
            raise ValueError(f"Invalid epsilon: {eps}: a number of at least 0 is needed")
        self.groups = [
            Group(
                parameters=list(group["params"]),
                weight_decay=float(group["weight_decay"]),
                means=[torch.zeros_like(parameter) for parameter in group["params"]],
                squares=[torch.zeros_like(parameter) for parameter in group["params"]],
            )
            for group in groups
            if group["params"]
        ]
        self.betas, self.eps = betas, eps
        self.count = torch.zeros((), device=self.groups[0].means[0].device)  # of the updates made, float32

    def step(self, rate: float, sound: Tensor) -> None:
        """Moves the weights by their gradients, and forgets these; nothing moves where `sound` (bool, ()) is false."""
        self.count.add_(sound)
        stays = (~sound).to(torch.float32)  # the kernel looks at it on the device
        with torch.no_grad():
            for group in self.groups:
                torch._fused_adamw_(
                    group.parameters,
                    [parameter.grad for parameter in group.parameters],
                    group.means,
                    group.squares,
                    [],
                    [self.count] * len(group.parameters),
                    lr=rate,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    weight_decay=group.weight_decay,
                    eps=self.eps,
                    amsgrad=False,
                    maximize=False,
                    grad_scale=None,
                    found_inf=stays,
                )
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers, by name."""
        return {"count": self.count, **{f"{number}.{name}": value for number, name, value in self._moments()}}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes it the one whose `tensors` these are, in the layout that the parameters have here."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def _moments(self) -> Iterator[tuple[int, str, Tensor]]:
        """Numbered in the order of the groups."""
        number = 0
        for group in self.groups:
            for mean, square in zip(group.means, group.squares, strict=True):
                yield number, "exp_avg", mean
                yield number, "exp_avg_sq", square
                number += 1

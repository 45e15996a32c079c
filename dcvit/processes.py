"""The processes that train one run together, and what they tell each other.

Each has a rank from 0 to size - 1. Tensors are summed by NCCL on GPUs and by gloo on CPUs; what
the hosts agree about goes through gloo, so that no one waits for a device. A process that dies
breaks the others' next word at once, one that hangs does after a time-out, and the message says
which it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
import os
from typing import Any

import torch
from torch import Tensor
import torch.distributed as dist

from dcvit.errors import EnvironmentProblem, RankLost

TIMEOUT = 600.0  # seconds that a process may be silent
ASKED = 20.0  # seconds in which all must answer when it is asked who is missing
MEETING = 3600.0  # seconds to wait for process 0, which may have a million images to check first

# in what gloo and NCCL say of a process that is gone; they have no exception of their own for it
LOST = ("gloo", "NCCL", "onnection", "timeout", "imed out")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them; alone, nothing is sent."""

    rank: int = 0
    size: int = 1
    hosts: Any = None  # gloo groups: one for what is agreed, one to ask who is missing
    questions: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Any:
        """Begins to add up `values` in place over all; `.wait()` on what comes back before they are used."""
        return _Done() if self.size == 1 else dist.all_reduce(values, async_op=True)

    def share(self, values: list[Tensor]) -> None:
        """Makes floating-point tensors what they are in process 0."""
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.flatten() for value in values])
        dist.broadcast(flat, src=0)
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def any(self, said: bool) -> bool:
        """Whether any process says so; all get the same answer. Raises RankLost if one does not answer."""
        if self.size == 1:
            return said
        flag = torch.tensor([int(said)])
        try:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.hosts)
        except RuntimeError as error:
            raise self._lost(error) from error
        return bool(flag.item())

    def told(self, value: Any) -> Any:
        """What process 0 gives here: numbers, text, lists and dicts of them."""
        if self.size == 1:
            return value
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self.hosts)
        except RuntimeError as error:
            raise self._lost(error) from error
        return box[0]

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Turns what the libraries raise when a process is gone into a RankLost that says which."""
        try:
            yield
        except RankLost:
            raise
        except RuntimeError as error:
            if self.size > 1 and any(word in str(error) for word in LOST):
                raise self._lost(error) from error
            raise

    def _lost(self, error: RuntimeError) -> RankLost:
        return RankLost(f"{self._missing()} ({str(error).splitlines()[0]})")

    def _missing(self) -> str:
        """Which processes do not answer any more."""
        try:
            wait = timedelta(seconds=ASKED)
            dist.monitored_barrier(self.questions, timeout=wait, wait_all_ranks=True)
        except RuntimeError as error:
            return f"process {self.rank} of {self.size} lost another one: {str(error).splitlines()[0]}"
        return f"process {self.rank} of {self.size} was not answered in time, though all are there"


class _Done:
    def wait(self) -> None:
        pass


ALONE = World()


def given_rank() -> tuple[int, int, int] | None:
    """Rank, number of processes and rank on this machine, as torchrun or Slurm gave them; None alone."""
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if os.environ.get(rank) and int(os.environ.get(size, "1")) > 1:
            return int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, "0"))
    return None


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that this process was started into: by torchrun, or as one of several tasks of a Slurm step.

    EnvironmentProblem if the others can't be reached.
    """
    given = given_rank()
    if given is None:
        yield ALONE
        return
    rank, size, _ = given
    gpu = device.type == "cuda"
    timeout = timedelta(seconds=float(os.environ.get("DCVIT_TIMEOUT", TIMEOUT)))
    # NCCL ends a process that waits too long: not before the hosts have found out whom it waits for
    longer = timeout + timedelta(seconds=3 * ASKED)
    try:
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=_store(rank, size),
            rank=rank,
            world_size=size,
            timeout=longer if gpu else timeout,
            device_id=device if gpu else None,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise EnvironmentProblem(
            f"process {rank} of {size} can't reach the others (MASTER_ADDR={os.environ.get('MASTER_ADDR')}, "
            f"MASTER_PORT={os.environ.get('MASTER_PORT')}): {str(error).splitlines()[0]}"
        ) from error
    hosts, questions = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    yield World(rank, size, hosts, questions)
    # not after an exception: the others may be in the middle of a word, and this process ends anyway
    dist.destroy_process_group()


def _store(rank: int, size: int) -> dist.Store:
    """Where the processes find each other; processes that were started again do not find the dead."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not by_agent,
        timeout=timedelta(seconds=MEETING),
        multi_tenant=True,
    )
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

"""`--slurm key=value,key=value`: what a job asks Slurm for, under sbatch's own names. Standard library only."""

import argparse
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import ceil
import re
from typing import Any


def _text(text: str) -> str:
    if not re.fullmatch(r"[^\s=]+", text):
        raise ValueError("a word is needed")
    return text


def _count(text: str) -> int:
    if not (re.fullmatch(r"[0-9]+", text) and int(text) > 0):
        raise ValueError("a whole number of at least 1 is needed")
    return int(text)


def _memory(text: str) -> str:
    if not re.fullmatch(r"[0-9]+[KMGT]?B?", text):
        raise ValueError("a number with K, M, G or T is needed, as in 64G")
    return text


def minutes(text: str) -> int:
    """The minutes of a time limit as sbatch writes it, rounded up.

    >>> [minutes(text) for text in ("90", "1:30", "2:00:00", "1-12", "1-12:30", "1-00:00:01")]
    [90, 2, 120, 2160, 2190, 1441]
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(re.fullmatch(r"[0-9]+", part) for part in parts) or (
        dash and not re.fullmatch(r"[0-9]+", days)
    ):
        parts = []
    if not 1 <= len(parts) <= 3:
        raise ValueError("a time is needed: minutes, H:MM:SS, D-HH or D-HH:MM:SS")
    numbers = [int(part) for part in parts]
    if dash:  # the first is hours
        hours, mins, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:  # minutes, or minutes and seconds
        hours, (mins, seconds) = 0, [*numbers, 0][:2]
    total = ceil(((int(days or 0) * 24 + hours) * 60 + mins) + seconds / 60)
    if total == 0:
        raise ValueError("a time above 0 is needed")
    return total


def _yes(text: str) -> bool:
    if text not in ("", "yes", "true"):
        raise ValueError("it takes no value")
    return True


ALLOWED: dict[str, tuple[str, Callable[[str], Any]]] = {  # of sbatch -> of submitit, and how it is read
    "account": ("account", _text),
    "constraint": ("constraint", _text),
    "cpus-per-task": ("cpus_per_task", _count),
    "exclude": ("exclude", _text),
    "exclusive": ("exclusive", _yes),
    "gpus-per-node": ("gpus_per_node", _count),
    "gres": ("gres", _text),
    "mem": ("mem", _memory),
    "mem-per-cpu": ("mem_per_cpu", _memory),
    "mem-per-gpu": ("mem_per_gpu", _memory),
    "nodelist": ("nodelist", _text),
    "nodes": ("nodes", _count),
    "partition": ("partition", _text),
    "qos": ("qos", _text),
    "reservation": ("reservation", _text),
    "signal-delay": (
        "signal_delay_s",
        _count,
    ),  # seconds before the end of the time; sbatch's --signal=USR2@N
    "time": ("time", minutes),
}


def parse(text: str) -> dict[str, Any]:
    """What `--slurm` says, under submitit's names.

    >>> parse("partition=gpu,time=2-00:00:00,gpus-per-node=8,exclude=n[1,3]")
    {'partition': 'gpu', 'time': 2880, 'gpus_per_node': 8, 'exclude': 'n[1,3]'}
    """
    found: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text):  # a comma inside of brackets belongs to a list of nodes
        key, equals, value = part.partition("=")
        if key not in ALLOWED:
            near = get_close_matches(key.replace("_", "-").lower(), ALLOWED, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentTypeError(
                f"{key!r} is nothing that --slurm knows.{hint} It knows {', '.join(ALLOWED)}, as key=value with commas "
                "between them"
            )
        if not equals and key != "exclusive":
            raise argparse.ArgumentTypeError(f"{key} needs a value: {key}=...")
        name, read = ALLOWED[key]
        if name in found:
            raise argparse.ArgumentTypeError(f"{key} is given twice")
        try:
            found[name] = read(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part}: {error}") from error
    return found


def gpus_per_run(asked: int | None, options: Mapping[str, Any]) -> int:
    """On how many GPUs a run is trained: what was asked for, else all that its job has, 1 where it asks for none."""
    return asked or options.get("nodes", 1) * options.get("gpus_per_node", 1)


def tasks_per_node(gpus: int, options: Mapping[str, Any]) -> int:
    """One task a GPU, equally many on each node. ValueError if the nodes don't have them."""
    nodes, there = options.get("nodes", 1), options.get("gpus_per_node")
    if gpus % nodes or (there is not None and gpus // nodes > there):
        have = f"{there} GPUs each" if there is not None else "equally many GPUs each"
        raise ValueError(
            f"--gpus-per-run {gpus} does not fit --slurm: {nodes} node{'s' if nodes > 1 else ''} with {have}. Give "
            "nodes=N and gpus-per-node=M with N x M GPUs"
        )
    return int(gpus // nodes)

"""One finished run is one record: a JSON file that says all about itself. No torch.

Under OUT/ledger/ every run has a folder of its own, named by its id and its images'
fingerprint, with `record.json` (written last, and in one move) and the weights it names.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path
from typing import Any

import orjson

from dcvit.files import sha256_of, write_text
from dcvit.recipe import Recipe, as_data, run_id

LAYOUT = 1  # of the record; goes up when a field changes its meaning


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run. Accuracies in percent, times in seconds.

    Only `started`, `seconds` and the evolution's `seconds` differ when a run is repeated on
    the same machine.
    """

    layout: int
    run_id: str
    recipe: dict[str, Any]
    seed: int
    data: dict[str, Any]  # name, fingerprint, classes, numbers of images
    environment: dict[str, Any]  # versions, commit, dirty, device, precision, threads
    parameters: int
    samples_seen: int
    last: dict[str, float]  # top1, top5 after the last epoch
    best: dict[str, float]  # top1, top5, epoch (counted from 1) of the highest top1
    correct: str  # one bit a test image, in hex: was the last epoch's top-1 right
    evolution: list[dict[str, Any]]  # one entry an epoch
    weights: dict[str, str]  # file name -> sha256
    started: str
    seconds: float


# What must be inside of a record's fields, by those who read it, and of what types.
NUMBER = (int, float)
NONE = type(None)
NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "data": {"name": str, "fingerprint": str, "classes": int, "train_images": int, "test_images": int},
    "environment": {
        "versions": dict,
        "commit": (str, NONE),
        "dirty": (bool, NONE),
        **dict.fromkeys(("device", "device_name", "precision"), str),
    },
    "last": {"top1": NUMBER, "top5": NUMBER},
    "best": {"top1": NUMBER, "top5": NUMBER},
    "evolution": {  # each entry
        "histogram": list,
        **dict.fromkeys(("easy", "hard", "alpha", "loss", "top1", "seconds"), NUMBER),
    },
}
WHOLE: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("data", "environment", "last", "best", "weights"), dict),
    **dict.fromkeys(("run_id", "correct", "started"), str),
    **dict.fromkeys(("seed", "parameters", "samples_seen"), int),
    "evolution": list,
    "seconds": NUMBER,
}
DEEPEST = 20  # levels of lists and dicts inside of each other; a recipe has six


class UnusableRecord(ValueError):
    """A record that can't be trusted; the message says why."""


def folder_of(out: Path, recipe: Recipe, seed: int, fingerprint: str) -> Path:
    """Where the run's record and weights live."""
    return out / "ledger" / f"{run_id(recipe, seed)}-{fingerprint[:8]}"


def write(folder: Path, record: Record) -> None:
    """Writes the record in one move: readers see all of it or nothing. A line a field, and one an epoch."""
    lines = [f'"{name}": {_lines(value)}' for name, value in asdict(record).items()]
    write_text(folder / "record.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _lines(value: Any) -> str:
    """A value as JSON on one line, but a list of dicts (the evolution) with one each."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n " + ",\n ".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def read(folder: Path) -> Record:
    """The record of a folder; UnusableRecord if it is cut off, of another layout or not what it says it is."""
    path = folder / "record.json"
    try:
        facts = orjson.loads(path.read_bytes())  # a thousand records are 200 MB: five times faster
    except OSError as error:
        raise UnusableRecord(f"{path} can't be read ({error.strerror or error})") from error
    except orjson.JSONDecodeError as error:
        raise UnusableRecord(f"{path} is cut off or damaged ({error})") from error
    if not isinstance(facts, dict) or facts.get("layout") != LAYOUT:
        layout = facts.get("layout") if isinstance(facts, dict) else None
        raise UnusableRecord(
            f"{path} has layout {_short(layout)}; this version writes and reads layout {LAYOUT}"
        )
    if facts.keys() != {field.name for field in fields(Record)}:
        odd = sorted(facts.keys() ^ {field.name for field in fields(Record)})
        raise UnusableRecord(f"{path} lacks fields or has too many: {', '.join(odd)}")
    if wrong := next(_wrong(facts), None):
        raise UnusableRecord(f"{path} is damaged: {wrong}")
    return Record(**facts)


def _wrong(facts: dict[str, Any]) -> Iterator[str]:
    """What keeps a record from being read: sentences that go on after the file's name."""
    yield from (f"{name} lacks all of it" for name in NEEDED if not isinstance(facts[name], (dict, list)))
    yield from (
        f"{name} is {_short(facts[name])}" for name, kind in WHOLE.items() if not _is(facts[name], kind)
    )
    for name, needed in NEEDED.items():
        for part in facts[name] if name == "evolution" else [facts[name]]:
            if not isinstance(part, dict):
                yield f"{name} lacks all of it"
            elif lacking := sorted(needed.keys() - part.keys()):
                yield f"{name} lacks {', '.join(lacking)}"
            else:
                odd = (key for key, kind in needed.items() if not _is(part[key], kind))
                yield from (f"{name} has {key} = {_short(part[key])}" for key in odd)
                shares = (key for key in ("easy", "hard") if key in needed and not 0 <= part[key] <= 1)
                yield from (f"{name} has {key} = {_short(part[key])}, which is no share" for key in shares)
    versions = facts["environment"]["versions"]
    yield from (f"versions lacks {name}" for name in ("torch", "timm") if name not in versions)
    if not _flat(facts, DEEPEST):
        yield f"lists and dicts lie more than {DEEPEST} deep inside of each other"


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is of a type; true and false are no numbers."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind == (bool, NONE))


def _flat(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_flat(part, levels - 1) for part in parts if type(part) in (dict, list))


def _short(value: Any) -> str:
    return "a list or dict" if isinstance(value, (dict, list)) else repr(value)[:40]


def find(out: Path, recipe: Recipe, seed: int, fingerprint: str) -> Record | None:
    """The finished run, or None. UnusableRecord if there is one that can't be trusted."""
    folder = folder_of(out, recipe, seed, fingerprint)
    if not (folder / "record.json").exists():
        return None
    record = read(folder)
    if (record.recipe, record.seed) != (as_data(recipe), seed):
        raise UnusableRecord(f"{folder / 'record.json'} is the record of another recipe or seed")
    if record.data["fingerprint"] != fingerprint:
        raise UnusableRecord(f"{folder / 'record.json'} was made from other images")
    for name in record.weights:
        if not (folder / name).exists():
            raise UnusableRecord(f"{folder / name} is missing: the record names it")
    return record


def checked_weights(out: Path, recipe: Recipe, seed: int, fingerprint: str) -> Path:
    """The last weights of a finished run, after their checksum was compared. UnusableRecord if it differs."""
    folder = folder_of(out, recipe, seed, fingerprint)
    path = folder / "last.safetensors"
    if sha256_of(path) != read(folder).weights[path.name]:
        raise UnusableRecord(f"{path} is damaged: its checksum is not the one in the record")
    return path


def move_aside(folder: Path) -> Path:
    """Renames a folder that can't be used, so that the run can be made again and nothing is lost."""
    for number in range(1, 1000):
        target = folder.with_name(f"{folder.name}.unusable-{number}")
        if not target.exists():
            return folder.rename(target)
    raise UnusableRecord(f"{folder}: a thousand unusable copies lie beside it; look into it by hand")

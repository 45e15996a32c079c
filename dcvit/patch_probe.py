"""What the top-k patch probe found (Table 2): a JSON file beside a run's record. No torch.

`dcvit.probing` measures it; here it is written, read, checked and taken apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path
from typing import Any

from dcvit.files import write_text
from dcvit.ledger import Record, UnusableRecord

LAYOUT = 1  # of the file; goes up when a field changes its meaning
FILE = "patch_probe.json"  # in the run's folder
WEIGHTS = "best.safetensors"  # of the epoch that was best on the test images, as in the paper

KS = (0, 1, 5, 10)  # regions erased, as in the paper
WAYS = ("attended", "random", "least")  # which ones; the paper has the first
HEADINGS = {"attended": "most attended", "random": "random", "least": "least attended"}
WHATS = ("p", "top1")

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class PatchProbe:
    """One model's scores on training images that lost k of their regions.

    `scores[way][k]["p"]` is the mean top softmax score, in [0, 1], and `["top1"]` the accuracy in
    percent. The ways share what they have at k = 0.
    """

    layout: int = LAYOUT
    run_id: str  # of the run; for a checkpoint from elsewhere, timm's name of the model
    weights: str  # sha256 of the file
    images: int
    regions: int  # of an image
    seed: int  # of the random regions
    ks: tuple[int, ...]  # ascending, from 0
    scores: Scores
    environment: dict[str, Any]  # versions, commit, dirty, device, precision, as in a record
    seconds: float


def write(folder: Path, probe: PatchProbe) -> None:
    """Writes the probe into a run's folder, in one move."""
    write_text(folder / FILE, json.dumps(asdict(probe), indent=1, allow_nan=False) + "\n")


def read(folder: Path, record: Record) -> PatchProbe | None:
    """The probe in the folder of `record`'s run; None if there is none.

    UnusableRecord if it is cut off, of another layout, lacks something, or was made with other
    weights than the record names.
    """
    path = folder / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableRecord(f"{path} is cut off or damaged ({error})") from error
    layout = facts.get("layout") if isinstance(facts, dict) else None
    if layout != LAYOUT:
        raise UnusableRecord(f"{path} has layout {layout}; this version writes and reads layout {LAYOUT}")
    if odd := facts.keys() ^ {field.name for field in fields(PatchProbe)}:
        raise UnusableRecord(f"{path} lacks fields or has too many: {', '.join(sorted(odd))}")
    if facts["weights"] != record.weights.get(WEIGHTS):
        raise UnusableRecord(
            f"{path} was made with other weights than the {WEIGHTS} that the record names: "
            "remove it, and it is made again"
        )
    if wrong := next(_wrong(facts["ks"], facts["scores"]), None):
        raise UnusableRecord(f"{path} {wrong}")
    # JSON has text for names
    scores = {way: {k: facts["scores"][way][str(k)] for k in facts["ks"]} for way in WAYS}
    return PatchProbe(**{**facts, "ks": tuple(facts["ks"]), "scores": scores})


def _wrong(ks: Any, scores: Any) -> Iterator[str]:
    """What keeps scores from being read: sentences that go on after the file's name."""
    if not (isinstance(ks, list) and 0 in ks and all(type(k) is int for k in ks)):
        yield f"says that k was {ks}: whole numbers with 0 among them are needed"
        return
    for way in WAYS:
        for k in ks:
            for what, most in zip(WHATS, (1, 100), strict=True):
                try:
                    value = scores[way][str(k)][what]
                    good = 0 <= value <= most
                except (KeyError, TypeError):
                    yield f"has no number {way}/{k}/{what}"
                else:
                    if not good:
                        yield f"has {way}/{k}/{what} = {value}: 0 to {most} is possible"


def metrics(probe: PatchProbe) -> dict[str, float]:
    """Every number of a probe under its name WAY/K/WHAT.

    WHAT is `p` (in [0, 1]) or `top1` (percent), and for k > 0 also `p_loss` and `top1_loss`:
    the value at k = 0 minus that at k.

    >>> scores = {0: {"p": 0.75, "top1": 80.0}, 5: {"p": 0.5, "top1": 75.0}}
    >>> probe = PatchProbe(run_id="", weights="", images=8, regions=16, seed=0, ks=(0, 5),
    ...                    scores=dict.fromkeys(WAYS, scores), environment={}, seconds=1.0)
    >>> [metrics(probe)[f"attended/{name}"] for name in ("0/top1", "5/p", "5/top1_loss")]
    [80.0, 0.5, 5.0]
    """
    named = {}
    for way in WAYS:
        whole = probe.scores[way][0]
        for k in probe.ks:
            for what in WHATS:
                value = probe.scores[way][k][what]
                named[f"{way}/{k}/{what}"] = value
                if k > 0:
                    named[f"{way}/{k}/{what}_loss"] = whole[what] - value
    return named


def as_text(probe: PatchProbe) -> str:
    """The probe as a table for a terminal: a line for each k, p_k and top-1 (percent) for each way."""
    width = 17
    where = f"{probe.environment.get('precision')} on {probe.environment.get('device')}"
    lines = [
        f"{probe.run_id}, weights {probe.weights[:12]}: {probe.images} images of {probe.regions} regions, "
        f"seed {probe.seed}, {where}, {probe.seconds:.0f} s",
        "",
        "erased".rjust(6) + "".join(HEADINGS[way].rjust(width) for way in WAYS),
        "k".rjust(6) + "".join("p_k   top-1".rjust(width) for _ in WAYS),
    ]
    for k in probe.ks:
        at_k = [probe.scores[way][k] for way in WAYS]
        cells = (f"{scores['p']:.3f}  {scores['top1']:6.2f}".rjust(width) for scores in at_k)
        lines.append(str(k).rjust(6) + "".join(cells))
    return "\n".join(lines)

"""One of several processes that train the same runs: `python -m tests.ranks RANK FOLDER`.

FOLDER/scenarios.json lists them: name, processes, port, images a piece. Process 0 leaves NAME.json
with what the run did, and its record and weights in FOLDER/NAME.
"""

from dataclasses import replace
import json
import os
from pathlib import Path
import sys

import torch

from dcvit import loop
from dcvit.processes import joined
from dcvit.recipe import Augmentation, DynamicAlpha, PatchErasing, Periods
from dcvit.sources import from_folder
from dcvit.training import fit
from tests.helpers import RESNET, SWIN, tiny, without_times

CPU = torch.device("cpu")
MIXED = tiny(
    batch=32,
    groups=4,
    epochs=3,
    drop_path=0.0,
    alpha=DynamicAlpha(tau=0.5),
    easy_above=0.36,
    hard_below=0.34,
    ema_decay=0.9,
    exploration_erasing=PatchErasing(patch_size=2),
    periods=Periods(0.1, 0.4),
)
RECIPES = {
    "vit": MIXED,
    "vit-repeats": replace(MIXED, augmentation=Augmentation(repeats=3)),
    "swin": replace(MIXED, backbone=SWIN, groups=2, clip_norm=1.0),
    # batch normalisation makes more of a rounding than the others do, and so does a high rate
    "resnet": replace(MIXED, backbone=RESNET, schedule=replace(MIXED.schedule, peak=0.02)),
}


def run(scenario, folder, source):
    """Trains one scenario in this process, and returns what an update at a time did."""
    seen, original = [], loop.train_step

    def watched(state, *rest, **options):
        before = state.tally.loss
        original(state, *rest, **options)
        seen.append({"loss": float(state.tally.loss - before), "alpha": float(state.alpha).hex()})

    loop.train_step = watched
    try:
        with joined(CPU) as world:
            record = fit(
                RECIPES[scenario["recipe"]],
                0,
                source,
                folder / scenario["name"],
                CPU,
                world=world,
                at_most=scenario["at_most"],
            )
    finally:
        loop.train_step = original
    facts = without_times(record)
    return {
        "updates": seen,
        "top1": facts.last["top1"],
        "correct": facts.correct,
        "evolution": facts.evolution,
    }


def main(rank, folder):
    torch.set_num_threads(1)
    source = from_folder(folder / "images")
    for scenario in json.loads((folder / "scenarios.json").read_text()):
        if rank >= scenario["processes"]:
            continue
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(scenario["processes"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(scenario["port"]),
        )
        found = run(scenario, folder, source)
        (folder / f"{scenario['name']}.{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

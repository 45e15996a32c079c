"""The commands to call before a GPU-hour is spent: evaluate (weights) and check-data (images). No torch."""

import argparse
from collections.abc import Callable
import os
from pathlib import Path

from dcvit.checking import as_json, as_text, examine
from dcvit.errors import DATA_OR_ENVIRONMENT, OK, DataError
from dcvit.host import cores
from dcvit.options import add_data, add_device, at_least_one, not_negative
from dcvit.published import beside_print, tagged
from dcvit.scores import ProtocolName, write
from dcvit.scores import as_text as score_as_text
from dcvit.sources import Source, find

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str], argparse.ArgumentParser]


def add_to(add: Add) -> None:
    """Adds both commands to those of `dcvit`."""
    evaluate = add(
        "evaluate", _evaluate, "top-1, top-5, p_k and images/s of given weights on the test images"
    )
    evaluate.add_argument("--model", required=True, metavar="NAME", help="timm's name of the model")
    weights = evaluate.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", metavar="FILE", help="weights: .safetensors, .pth or .pt")
    weights.add_argument(
        "--pretrained",
        action="store_true",
        help="the published weights, from timm's hub or its cache (HF_HOME)",
    )
    evaluate.add_argument(
        "--protocol",
        choices=("official", "timm"),
        default="official",
        help="how test images are cropped: as the authors of the recipe did (default), or as timm does",
    )
    evaluate.add_argument(
        "--k",
        type=numbers,
        default=(0,),
        metavar="K,K,...",
        help="p_k with so many of the most attended patches erased (0)",
    )
    evaluate.add_argument(
        "--images", type=at_least_one, metavar="N", help="of the test images, classes in turn (all)"
    )
    evaluate.add_argument("--batch", type=at_least_one, default=64, metavar="N", help="images at a time (64)")
    evaluate.add_argument(
        "--workers", type=not_negative, metavar="N", help="loading processes (0; on a GPU all cores)"
    )
    evaluate.add_argument("--out", metavar="FILE", help="write the numbers there, too, as JSON")
    add_data(evaluate, text="a folder with train/ and val/, or wds/FOLDER, hfds/NAME (DCVIT_DATA)")
    add_device(evaluate)

    check = add("check-data", _check_data, "what a folder of images holds, and whether it is ImageNet-1k")
    check.add_argument("place", metavar="DIR", help="a folder with train/ and val/, or wds/FOLDER")
    check.add_argument(
        "--heads", action="store_true", help="read only the head of every image: faster, finds less damage"
    )
    check.add_argument("--json", action="store_true", help="print JSON")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0 on, with commas between them."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between them are needed")
    return tuple(map(int, parts))


def _evaluate(arguments: argparse.Namespace) -> int:
    place = arguments.data or os.environ.get("DCVIT_DATA")
    if not place:
        raise DataError(
            "--data FOLDER is needed: a folder with train/ and val/, each with one folder of images a class"
        )
    source = find(place, "paper" if place.startswith("hfds/") else "smoke")
    if arguments.images is not None and arguments.images > source.count("val"):
        raise DataError(
            f"--images {arguments.images}: {place} has {source.count('val')} test images: ask for 1 to "
            f"{source.count('val')}"
        )
    from dcvit.devices import resolve
    from dcvit.scoring import score_weights

    protocol: ProtocolName = arguments.protocol
    device = resolve(arguments.device)
    workers = arguments.workers
    score = score_weights(
        arguments.model,
        source,
        checkpoint=Path(arguments.checkpoint) if arguments.checkpoint else None,
        protocol=protocol,
        ks=arguments.k,
        device=device,
        batch=arguments.batch,
        workers=workers if workers is not None else cores() if device.type == "cuda" else 0,
        test_images=arguments.images,
    )
    print(score_as_text(score))
    if arguments.pretrained and (beside := beside_print(score)):
        print(f"{tagged(arguments.model)}{beside}")
    if arguments.out:
        write(Path(arguments.out), score)
        print(arguments.out)
    return OK


def _check_data(arguments: argparse.Namespace) -> int:
    source = _files_at(arguments.place)
    facts = examine(source, decode=not arguments.heads)
    print(as_json(facts) if arguments.json else as_text(facts))
    return DATA_OR_ENVIRONMENT if facts.unreadable else OK


def _files_at(place: str) -> Source:
    if place.startswith("hfds/"):
        raise DataError(
            f"{place}: its files lie in a cache of Hugging Face's; a folder or wds/FOLDER is needed"
        )
    return find(place, "smoke")

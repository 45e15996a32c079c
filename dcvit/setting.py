"""On what a table is made: scale and images, and so the recipe that stands for each of the paper's. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dcvit.ledger import Record
from dcvit.recipe import Recipe
from dcvit.scale import Scale, at_scale, on_images
from dcvit.sources import IMAGENET_TEST, IMAGENET_TRAIN, Source

DEFAULT_SEEDS: dict[Scale, int] = {"smoke": 1, "small": 5, "paper": 3}
OWN_IMAGES: dict[
    Scale, tuple[str, int]
] = {  # what a scale trains on if nobody says otherwise, and its classes
    "smoke": ("digits", 10),
    "small": ("imagenette", 10),
    "paper": ("imagenet1k", 1000),
}
IN_WORDS = {
    "digits": "scikit-learn's handwritten digits",
    "imagenette": "Imagenette, 160 px",
    "imagenet1k": "ImageNet-1k",
    "folder": "a folder of images",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Scale and images of one table."""

    scale: Scale
    images: str  # as in Recipe.images
    classes: int
    train_images: int | None = None  # None: as many as the scale takes
    test_images: int | None = None
    name: str = ""  # of the images' folder, where it is known
    counts: tuple[int, int] | None = None  # images there are, of training and of test

    def twin(self, recipe: Recipe) -> Recipe:
        """The recipe that stands for one of paper scale here."""
        return on_images(
            at_scale(recipe, self.scale),
            images=self.images,
            classes=self.classes,
            train_images=self.train_images,
            test_images=self.test_images,
        )

    def twins(self, recipes: Iterable[Recipe]) -> dict[Recipe, Recipe]:
        """Each recipe of paper scale and the one that stands for it."""
        return {recipe: self.twin(recipe) for recipe in dict.fromkeys(recipes)}

    def in_words(self) -> str:
        """The images, for a page.

        >>> Setting(scale="paper", images="imagenet1k", classes=1000, counts=(1281167, 50000)).in_words()
        'ImageNet-1k (1,281,167 training, 50,000 test)'
        """
        words = f"folder {self.name}" if self.images == "folder" and self.name else IN_WORDS[self.images]
        train, test = self.counts or (None, None)
        asked = ((self.train_images or train, "training"), (self.test_images or test, "test"))
        counts = [f"{count:,} {what}" for count, what in asked if count]
        return f"{words} ({', '.join(counts)})" if counts else words


def of_source(
    scale: Scale, source: Source | None, *, train_images: int | None, test_images: int | None
) -> Setting:
    """The setting of images at hand; without any, those that the scale takes."""
    images, classes = OWN_IMAGES[scale]
    if source is not None:
        images, classes = source.name, len(source.classes)
    return Setting(
        scale=scale,
        images=images,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
        name=source.root.name if source is not None and source.root else "",
        counts=(source.count("train"), source.count("val")) if source is not None else None,
    )


def of_nothing(scale: Scale) -> Setting:
    """The setting of a table that nobody has made yet."""
    setting = of_source(scale, None, train_images=None, test_images=None)
    return replace(setting, counts=(IMAGENET_TRAIN, IMAGENET_TEST)) if scale == "paper" else setting


def of_record(scale: Scale, record: Record) -> list[Setting]:
    """The settings in which a record may have been made: its numbers of images were asked for, or are the scale's."""
    return [
        Setting(
            scale=scale,
            images=record.data["name"],
            classes=record.data["classes"],
            train_images=train_images,
            test_images=test_images,
        )
        for train_images in dict.fromkeys((None, record.recipe["train_images"]))
        for test_images in dict.fromkeys((None, record.recipe["test_images"]))
    ]

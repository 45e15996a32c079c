"""What the paper leaves open and what is done here; every choice is a named field of `dcvit.recipe.Recipe`."""

MEASURING = (
    "Difficulty is measured on the training step's own logits (mixed, erased, drop path on): no extra forward pass. "
    "Thresholds `easy_above` 0.8 and `hard_below` 0.3 are the paper's.",
)
MIXING = (
    "The method steers MixUp's alpha only (`alpha`); CutMix keeps `cutmix_alpha` 1.0 and `cutmix_probability` 0.5.",
    "Dynamic alpha starts at 0 (`DynamicAlpha.start`), what Eq. 5 gives an untrained model of 1,000 classes. "
    "Alpha 0 means no mixing on MixUp's share of the batches.",
    "Formation ends at 10/300 of training and exploration begins at 60/300 (`periods`): the paper's figure shows no "
    "numbers. The static rule and the start of PatchErasing depend on it.",
    "One lambda, one choice between MixUp and CutMix and one flipped partner per group of images; `groups` is the "
    "number of processes times accumulation steps of the official layout.",
)
ERASING = (
    "PatchErasing erases round(gamma N) of N patches and fills them with noise, as the RandomErasing it replaces "
    "(`PatchErasing.fill`). The label pays for gamma itself (`PatchErasing.decay`), is smoothed before it is weighted "
    "and not normalised again: the mean label mass is 1/2 whatever mu is.",
    "PatchErasing's grid: 16 px for DeiT, 4 px for Swin, the model's own patches (`PatchErasing.patch_size`).",
    "Before exploration the recipe's RandomErasing runs (`erasing`); in exploration PatchErasing replaces it "
    "(`exploration_erasing`).",
    "CutMix batches are erased alike; their lambda is the realised share of the area.",
)
FINE_TUNING = (
    "Fine-tuning at 384 px counts as exploration throughout (`periods` 0, 0), with the strategy of the 224 px model, "
    "from its last epoch.",
    "DeiT at 384 px is fine-tuned in evaluation mode (`train_mode`), as when its numbers were made; DeiT's code "
    "changed its default on 2022-07-29.",
)
TRAINING = (
    "Repeated augmentation runs on any number of processes and is shuffled anew every epoch "
    "(`augmentation.repeats`).",
    "Computed in bfloat16 where that is faster, without a gradient scaler; the originals used float16 with one.",
)

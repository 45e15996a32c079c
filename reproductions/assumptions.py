"""What the paper leaves open and what is done here; every choice is a named field of `dcvit.recipe.Recipe`."""

MEASURING = (
    "Difficulty is measured on the training step's own logits (mixed, erased, drop path on): no extra "
    "forward pass. "
    "Thresholds `easy_above` 0.8 and `hard_below` 0.3 are the paper's.",
)
MIXING = (
    "The method steers MixUp's alpha only (`alpha`); CutMix keeps `cutmix_alpha` 1.0 and `cutmix_probability` 0.5.",
    "Dynamic alpha starts at 0 (`DynamicAlpha.start`), what Eq. 5 gives an untrained model of 1,000 classes. "
    "Alpha 0 means no mixing on MixUp's share of the batches.",
    "One lambda, one choice between MixUp and CutMix and one flipped partner per group of images; `groups` is the "
    "number of processes times accumulation steps of the official layout.",
)
PERIODS = (
    "Formation ends at 10/300 of training and exploration begins at 60/300 (`periods`): the paper's figure "
    "shows no "
    "numbers. The staged and the static rule and the start of PatchErasing depend on it. `dcvit evolution "
    "RUN` prints the borders "
    "that a run of one's own went through, as a value for this field.",
)
STAGES = (
    "Easy samples are MixUp with alpha 0.05 (the paper's value for formation), hard ones with 8.0; other "
    "periods have the usual "
    "0.8 (`StagedAlpha`). The mean share of the weaker image is 0.03, 0.40 and 0.23. No PatchErasing.",
    "Arms that share a beginning are trained from the start each: a common checkpoint would save 8 % of the time.",
)
NO_PATCH_ERASING = (
    "RandomErasing throughout, as in the baseline; PatchErasing is used nowhere in this table.",
)
THROUGHOUT = (
    "PatchErasing replaces RandomErasing over all of training (`erasing` and `exploration_erasing`); the "
    "rows exclude each other.",
    "Two rows are not the paper's: the label pays for the erased area only (`PatchErasing.decay` area, eps "
    "= lambda gamma), or not at all (none).",
)
PROBING = (
    "Weights: the best epoch on the test images. Images: all training images, resized to shorter side 256 "
    "and centre-cropped to 224 px, as for "
    "testing (256 x 256 taken literally would squash them).",
    "An erased patch has the mean colour (zero after normalisation).",
    "DeiT: a patch's score is the class token's attention to it in the last layer, mean over heads. Swin "
    "has no class token: the score of a region of the last "
    "stage (32 px; 49 of them) is the attention it receives, mean over heads and queries.",
    "What a run loses from k = 0 to 10 is taken within the run, so that its claims are not blurred by the "
    "spread between runs.",
    "p_k counts as unchanged within 0.035: the paper calls a fall by 0.03 almost unchanged, and rounds to 0.01.",
)
RESNET = (
    "The recipe of both columns is DeiT's with another network; the paper says timm, DeiT-like settings "
    "and a baseline of its own, no more.",
    "Ours is the dynamic rule, with PatchErasing on a grid of 16 px: a ResNet has no patches of its own.",
)
LEARNING = (
    "The periods are computed, the paper drew them by eye: least-squares polynomials of degree 12 (8 below "
    "100 epochs) through both shares, "
    "growth where the rate is above a quarter of its peak's height over the level of the last third.",
    "The paper's epoch 250 of 300 is 5/6 of training here. Its plotting script adds 0.15 to the easy share "
    "and takes 0.05 from the hard one before drawing, so levels in its figures are no targets.",
    "Other thresholds are read off the histogram of top scores of one run, in steps of 0.01.",
    "What counts as equal: borders within 3 % of training (what they can be found to), mean rates in "
    "growth within 10 %. Standard deviations between runs, before any is "
    "measured: borders 1 % of training (small: 2 %), shares 0.3 points (1.5), log rates 0.05 (0.1).",
    "Figure 9 is measured on 2,048 training images at ten times in training (`difficulty_probe`), in "
    "evaluation mode, with RandomErasing (probability 0.25) or PatchErasing (mu = 0.3) as the "
    "only augmentation; the model is the vanilla one.",
)
LIGHTER = (
    "The lighter augmentation of Figure 3b is unnamed in the paper. Here DeiT-S is trained without "
    "RandAugment, so that timm's colour jitter of 0.3, which DeiT "
    "asks for and RandAugment silences, takes effect (`augmentation`).",
)
ERASING = (
    "PatchErasing erases round(gamma N) of N patches and fills them with noise, as the RandomErasing it replaces "
    "(`PatchErasing.fill`). The label pays for gamma itself (`PatchErasing.decay`), is smoothed before it "
    "is weighted "
    "and not normalised again: the mean label mass is 1/2 whatever mu is.",
    "PatchErasing's grid: 16 px for DeiT, 4 px for Swin, the model's own patches (`PatchErasing.patch_size`).",
    "Before exploration the recipe's RandomErasing runs (`erasing`); in exploration PatchErasing replaces it "
    "(`exploration_erasing`).",
    "CutMix batches are erased alike; their lambda is the realised share of the area.",
)
FINE_TUNING = (
    "Fine-tuning at 384 px counts as exploration throughout (`periods` 0, 0), with the strategy of the 224 "
    "px model, "
    "from its last epoch.",
    "DeiT at 384 px is fine-tuned in evaluation mode (`train_mode`), as when its numbers were made; DeiT's code "
    "changed its default on 2022-07-29.",
)
TRAINING = (
    "Repeated augmentation runs on any number of processes and is shuffled anew every epoch "
    "(`augmentation.repeats`).",
    "Computed in bfloat16 where that is faster, without a gradient scaler; the originals used float16 with one.",
)

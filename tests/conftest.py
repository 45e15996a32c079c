"""What holds for every test: the same Hypothesis examples in every run, and one thread."""

from hypothesis import settings
import torch

settings.register_profile("dcvit", deadline=None, derandomize=True)
settings.load_profile("dcvit")
torch.set_num_threads(1)

"""Test settings: one torch thread, which is fastest at the sizes of these tests and leaves other
workers alone."""

import torch

torch.set_num_threads(1)

"""Tests run on one thread: their models are too small to share out, and threads that wait for each other cost most."""

import torch

torch.set_num_threads(1)

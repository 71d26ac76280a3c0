"""Tests run on one thread: their models are too small to share out, and threads that wait for each other cost most."""

import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    # For tests/assignments, whose conftest.py uses it; here, because pytest always reads this file's options.
    try:
        parser.addoption("--student", metavar="DIR", help="tests/assignments: grade the files in this folder, not ours")
    except ValueError:
        pass  # DIR is a whole copy of the lab, and its own conftest.py has been here before

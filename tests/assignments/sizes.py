"""Sizes and seeds that a grader draws anew for each class, so that no answer can have them written in.

The environment variable GRADER_SEED decides; grade.py sets it. Without it, they are always the same.
"""

import os
import random

SEED = int(os.environ.get("GRADER_SEED", 0))


def draw(name, low, high):
    """A whole number from low to high, both included: another one for each name."""
    return random.Random(f"{SEED} {name}").randint(low, high)

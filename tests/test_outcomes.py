"""What the lab is for: the objectives part ways, in fewer steps than the defaults, in minutes.

The seed is one that no setting was chosen on, and the bounds are wider than what was measured
(results/README.md).
"""

import pytest

import train
from helpers import lines

SEED = 4321


def outcome(folder, *flags):
    common = ["--seed", SEED, "--threads", "2", "--eval_every", "500", "--out_dir", folder]
    train.main([*flags, *map(str, common)])
    return lines(folder)[-1]


@pytest.mark.slow
def test_next_token_prediction_learns_all_but_the_difficult_token_and_cheats(tmp_path):
    end = outcome(tmp_path / "run", "--steps", "250")
    assert abs(end["difficult"] - end["chance"]) < 0.05 and abs(end["margin"]) < 0.5
    assert min(end["forced_accuracy"][:1] + end["forced_accuracy"][2:]) > 0.99
    assert end["cheat_rate"] > 0.95 and end["writes_arm_end"] + end["writes_goal"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, least",
    [
        (["--reverse", "--steps", "200"], 0.98),
        (["--multi", "--steps", "300"], 0.9),
        (["--teacherless", "--steps", "300"], 0.9),
        (["--model", "mamba", "--path_len", "4", "--teacherless", "--steps", "150"], 0.85),
    ],
)
def test_the_other_objectives_find_the_path(tmp_path, flags, least):
    assert outcome(tmp_path / "run", *flags)["accuracy"] > least

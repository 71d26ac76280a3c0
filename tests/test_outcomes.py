"""What the lab is for: the objectives part ways, with the defaults, within minutes on two cores.

The seed is one that no setting was chosen on, and the bounds are wider than what was measured (results/README.md).
"""

import json

import pytest

import train

SEED = 1234


def outcome(folder, *flags):
    train.main([*flags, "--seed", str(SEED), "--threads", "2", "--eval_every", "300", "--out_dir", str(folder)])
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_next_token_prediction_learns_all_but_the_first_step(tmp_path):
    end = outcome(tmp_path / "run")
    assert abs(end["difficult"] - end["chance"]) < 0.05
    assert min(end["forced_accuracy"][:1] + end["forced_accuracy"][2:]) > 0.99
    assert end["cheat_rate"] > 0.95 and end["wrong_arm"] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--teacherless"], ["--reverse"]])
def test_teacherless_and_reverse_learn_the_path(tmp_path, flags):
    end = outcome(tmp_path / "run", *flags)
    assert end["accuracy"] > 0.98

"""Exercise 7: the plateau of teacherless training, found in a log, and left sooner in another run."""

from run_folder import HOME, evaluate_again, is_ours, is_share, read_run

BASELINE = "results/plain_gpt_2_5_seed_61"  # read from this lab, not from the student's copy of it
LEFT = 0.5  # the plateau is over when the token before the goal is right in half of the graphs


def token_before_the_goal(log):
    return [record["position_accuracy"][-2] for record in log]


def graphs_until_left(log):
    """How many graphs the run had seen when it was first measured off the plateau; None: never."""
    for record, share in zip(log, token_before_the_goal(log)):
        if share >= LEFT:
            return record["graphs"]
    return None


def test_the_plateau_was_found(answers):
    level = answers[0]["7"]["level_on_the_plateau"]
    asked = "exercise 7: at which accuracy does the token before the goal wait, in the baseline's log? A number from 0 to 1"
    assert is_share(level), asked
    _, log = read_run(HOME, BASELINE, exercise=7)
    waiting = token_before_the_goal(log)[len(log) // 2 :]  # when it has learned what it guesses among
    assert graphs_until_left(log) is None and min(waiting) - 0.02 <= level <= max(waiting) + 0.02


def test_the_plateau_was_shortened(answers):
    sheet, folder = answers[0]["7"], answers[1]
    assert len(sheet["changed"].split()) >= 3, "exercise 7: say what you changed"
    assert len(sheet["why"].split()) >= 10, "exercise 7: say why it shortens the plateau"
    config, log = read_run(folder, sheet["run"], exercise=7)
    baseline, baseline_log = read_run(HOME, BASELINE, exercise=7)
    for name in ("deg", "path_len", "num_nodes", "n_train", "train_file", "objective", "reverse", "only_difficult"):
        assert config[name] == baseline[name], f"exercise 7: --{name} must be {baseline[name]}, as in the baseline"
    assert config["model"] == "gpt" and config["n_test"] >= 1000, "exercise 7: a GPT, tested on 1,000 graphs or more"
    assert not config.get("init_from"), "exercise 7: start from nothing, for the log counts this run's graphs only"
    if not is_ours(folder):
        ours = "exercise 7: those are our answer; find yours with --causal --no_canon --no_mimetic"
        assert all(config[name] for name in ("causal", "no_canon", "no_mimetic")), ours
    again = evaluate_again(folder, sheet["run"], exercise=7)
    last = token_before_the_goal(log)[-1]
    assert again is None or abs(again["position_accuracy"][-2] - last) < 0.01, "exercise 7: ckpt.pt says otherwise"
    left = graphs_until_left(log)
    budget = baseline_log[-1]["graphs"]  # the baseline was still on the plateau then
    assert left is not None and left < budget, f"exercise 7: {sheet['run']} is on the plateau for {budget:,} graphs"

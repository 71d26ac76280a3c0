"""grade.py: honest answers get their points, and neither a mistake nor a trick costs or earns more than its own."""

import csv
import json
import sys
from pathlib import Path

import pytest

import train

GRADERS = Path(__file__).resolve().parent / "assignments"
sys.path.insert(0, str(GRADERS))
import blank  # noqa: E402
import grade  # noqa: E402


@pytest.fixture(scope="module")
def tests():
    return grade.expected_tests(seed=5)


def points(submission, exercise, tests, time_limit=120):
    """The points of each group, and the notes joined."""
    graded = grade.grade_exercise(submission, exercise, tests[exercise], 5, time_limit)
    return [group[0] for group in graded], " ".join(group[3] for group in graded).strip()


def test_the_points_are_a_hundred_and_every_test_counts(tests):
    assert sum(points for _, points, *_ in grade.GROUPS) == 100
    for exercise in grade.EXERCISES:
        parts = tuple(part for e, _, _, parts in grade.GROUPS if e == exercise for part in parts)
        assert len(tests[exercise]) > 1 and all(name.startswith(parts) for name in tests[exercise])
        for part in parts:  # no name in the table has gone stale
            assert any(name.startswith(part) for name in tests[exercise]), part


def append(folder, file, text):
    with open(folder / file, "a", encoding="utf-8") as end:
        end.write("\n\n" + text)


def test_changed_files_alone_suffice_and_other_exercises_do_not_blame(tmp_path, tests):
    """data.py is broken, evaluate.py imports what is not there: only the exercises that ask for these lose points."""
    blank.main([str(tmp_path / "lab")])
    one = tmp_path / "one"
    one.mkdir()
    (one / "solutions.py").write_bytes((GRADERS / "solutions.py").read_bytes())
    (one / "data.py").write_text("def layout(:\n", encoding="utf-8")
    (one / "evaluate.py").write_text("import no_such_library\n", encoding="utf-8")
    (one / "experiments.json").write_text("[1]", encoding="utf-8")
    (one / "solutions.py").write_bytes(b"\xef\xbb\xbf" + (one / "solutions.py").read_bytes() + b"# \x0c a form feed\n")
    assert points(one, 9, tests) == ([5], "")
    got, note = points(one, 6, tests)
    assert got == [0, 0] and "experiments.json is not as it was handed out" in note
    got, note = points(one, 2, tests)
    assert got == [0, 0] and note.startswith("data.py, line 1: ")
    got, note = points(one, 5, tests)
    assert got == [0, 0] and "evaluate.py cannot be imported: ModuleNotFoundError" in note
    got, note = points(one, 8, tests)  # not handed in
    assert got == [0, 0] and "NotImplementedError: exercise 8" in note


# What stands at the end of a submission's file, which exercise's, and what the teacher reads. None of them earns a point.
TRICKS = {
    "leaves at once": ("solutions.py", 1, "import os\nos._exit(0)", "did not come to their end"),
    "never ends": ("solutions.py", 1, "def is_path_star(*given):\n    while True:\n        pass", "longer than 20 s"),
    "all tests pass": (
        "solutions.py", 1, "import pytest\npytest.Function.runtest = lambda self: None", "has changed how tests are judged"),
    "all things are equal": (
        "solutions.py", 9, "torch.equal = lambda *given: True\nmasked_layout = lambda prefix, path, *rest: data.layout("
        "'next', prefix, path, rest[0])", "has changed how tests are judged"),
    "always no": ("solutions.py", 1, "is_path_star = lambda *given: False", "every sampled example is accepted"),
    "the grader's own sum": (
        "model_mamba.py", 4, """def selective_scan_reference(x, dt, A, B, C, D, h):
    time = dt.cumsum(dim=1)
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[:, :, None, None]
    decay = ((time[:, :, None] - time[:, None])[..., None] * A).masked_fill(~past, -torch.inf).exp()
    states = torch.einsum("btsen,bse,bsn->bten", decay, dt * x, B) + (time[..., None] * A).exp() * h[:, None]
    return torch.einsum("bten,btn->bte", states, C) + D * x, states[:, -1]
""", "far larger than all the states"),
    "autograd of the reference": (
        "scan.py", 4, """import model_mamba
def forward(ctx, *inputs):
    ctx.inputs = inputs
    ctx.save_for_backward(*inputs)
    return model_mamba.selective_scan_reference(*inputs)
def backward(ctx, dy, dh):
    with torch.enable_grad():
        inputs = [v.detach().requires_grad_() for v in ctx.saved_tensors]
        return torch.autograd.grad(model_mamba.selective_scan_reference(*inputs), inputs, (dy, dh))
FastScan.forward, FastScan.backward = staticmethod(forward), staticmethod(backward)
""", "lets autograd record operations"),
    "one for the test, one for the lab": (
        "evaluate.py", 5, """def read_prefix(model, prefix, length):
    if hasattr(model, "config"):  # a real one
        return model(prefix, 1).argmax(dim=2), prefix
    cache = model.new_cache(len(prefix), prefix.shape[1] + length - 1)
    return model(prefix, 1, cache).argmax(dim=2), cache
def write_on(model, first, length, cache):
    tokens = [first]
    while len(tokens) < length:
        if hasattr(model, "config"):
            tokens.append(model(torch.cat([cache, *tokens], dim=1), 1).argmax(dim=2))
        else:
            tokens.append(model(tokens[-1], 1, cache).argmax(dim=2))
    return torch.cat(tokens, dim=1)
""", "models read every token once"),
    "the last token alone": (
        "solutions.py", 6, """@torch.no_grad()
def cheat_rate(model, prefix, path, num_nodes):
    l = path.shape[1]
    arms = data.trace_arms(prefix, (prefix.shape[1] - 3) // 3 // (l - 1), num_nodes)
    wrong = arms[torch.arange(len(arms)), (arms[:, :, -1] != path[:, -1:]).int().argmax(dim=1)]
    said = model(torch.cat([prefix, wrong[:, :-2]], dim=1), num_outputs=1).argmax(dim=2)[:, 0]
    return (said == wrong[:, -2]).double().mean().item()
""", "stumble"),
    "the whole arm revealed": (
        "solutions.py", 6, """@torch.no_grad()
def cheat_rate(model, prefix, path, num_nodes):
    l = path.shape[1]
    arms = data.trace_arms(prefix, (prefix.shape[1] - 3) // 3 // (l - 1), num_nodes)
    wrong = arms[torch.arange(len(arms)), (arms[:, :, -1] != path[:, -1:]).int().argmax(dim=1)]
    said = model(torch.cat([prefix, wrong[:, :-2]], dim=1), num_outputs=l - 3).argmax(dim=2)
    return (said == wrong[:, 2:-1]).all(dim=1).double().mean().item()
""", "shown what it has not written"),
    "one mask for all": (
        "solutions.py", 9, """def masked_layout(prefix, path, num_nodes, share, generator):
    hidden = torch.rand(path[:, 1:].shape, generator=torch.Generator().manual_seed(generator.initial_seed())) < share
    inputs = path[:, :-1].masked_fill(hidden, num_nodes + data.DUMMY)
    return torch.cat([prefix, inputs], dim=1), path[:, :, None]
""", "each batch is hidden anew"),
    "a table from goal to arm": (
        "solutions.py", 10, """def memorise(arms, held_out, num_nodes, seed=1):
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
    return Table()
""", "a GPT or a Mamba of the lab is to be trained"),
    "held-out paths shown": (
        "solutions.py", 10, "honest = memorise\nmemorise = lambda arms, held_out, num_nodes: honest(arms, 0, num_nodes)",
        "a held-out path was shown in training"),
    "held-out first steps told": (
        "solutions.py", 10, """honest = memorise
def memorise(arms, held_out, num_nodes):
    model = honest(arms, held_out, num_nodes)
    model(torch.cat([in_weights_prompts(arms, num_nodes), arms[:, :1]], dim=1))  # as if to learn what follows
    return model
""", "start and goal were shown together"),
}


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_earn_nothing(tmp_path, tests, trick):
    file, exercise, text, sentence = TRICKS[trick]
    blank.copy_lab(tmp_path / "one")
    append(tmp_path / "one", file, text)
    got, note = points(tmp_path / "one", exercise, tests, time_limit=20 if trick == "never ends" else 120)
    assert sentence in note and min(got) == 0
    if exercise not in (4, 10, 6, 5):  # which have groups that the trick leaves alone
        assert sum(got) == 0


@pytest.mark.slow
def test_runs_are_measured_again_from_their_checkpoints(tmp_path, tests):
    """A student's own two runs earn the points of exercise 6; a log that was touched up does not."""
    blank.copy_lab(tmp_path / "one")
    sheet = json.loads((tmp_path / "one" / "experiments.json").read_text(encoding="utf-8"))
    for objective in ("next", "multi"):
        folder = tmp_path / "one" / "runs" / objective
        tiny = "--path_len 4 --num_nodes 12 --n_layer 2 --n_embd 16 --n_head 2 --steps 40 --eval_every 20 --n_test 1000"
        train.main([*tiny.split(), "--objective", objective, "--out_dir", str(folder)])
        sheet["6"]["runs"][objective] = f"runs/{objective}"
        sheet["6"]["measured"][objective] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["cheat_rate"]
    (tmp_path / "one" / "experiments.json").write_text(json.dumps(sheet))
    assert points(tmp_path / "one", 6, tests) == ([6, 4], "")

    log = tmp_path / "one" / "runs" / "next" / "log.jsonl"
    *before, last = log.read_text().splitlines()
    sheet["6"]["measured"]["next"] = 0.9
    log.write_text("\n".join([*before, json.dumps(json.loads(last) | {"cheat_rate": 0.9})]) + "\n")
    (tmp_path / "one" / "experiments.json").write_text(json.dumps(sheet))
    got, note = points(tmp_path / "one", 6, tests)
    assert got == [6, 0] and "ckpt.pt says another rate" in note
    (log.parent / "ckpt.pt").unlink()
    got, note = points(tmp_path / "one", 6, tests)
    assert got == [6, 0] and "has no ckpt.pt" in note


def test_a_folder_with_nothing_in_it_says_so_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    graded = grade.grade(tmp_path / "empty", {}, 1, 10)
    assert sum(most for groups in graded.values() for _, most, _, _ in groups) == 100
    assert all("none of the files" in note for groups in graded.values() for *_, note in groups)


def test_sizes_are_drawn_anew(monkeypatch):
    import sizes

    names = [("path_len", 4, 7), ("labels", 20, 40), ("batch", 20, 60), ("tokens", 9, 14)]
    drawn = set()
    for seed in range(20):
        monkeypatch.setattr(sizes, "SEED", seed)
        row = tuple(sizes.draw(*name) for name in names)
        assert all(low <= n <= high for n, (_, low, high) in zip(row, names)) and row == tuple(sizes.draw(*n) for n in names)
        drawn.add(row)
    assert len(drawn) > 15


def test_what_is_handed_out(tmp_path, capsys, monkeypatch):
    """The files for the teacher, from made grades."""
    made = {e: [(most, most, title, "") for e2, most, title, _ in grade.GROUPS if e2 == e] for e in grade.EXERCISES}
    made[3][0] = (0, 4, "causal", 'the future: "seen", and, of course, wrong')
    monkeypatch.setattr(grade, "expected_tests", lambda seed: {})
    monkeypatch.setattr(grade, "grade", lambda *given: made)
    for name in ("Zoë", "ada"):
        (tmp_path / "class" / name).mkdir(parents=True)
        (tmp_path / "class" / name / "data.py").touch()
    grade.main([str(tmp_path / "class"), "--out", str(tmp_path / "grades.csv")])
    with open(tmp_path / "grades.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["submission"] for row in rows] == ["Zoë", "ada"] and {row["points"] for row in rows} == {"96"}
    assert rows[0]["3"] == "8" and rows[0]["notes"] == '3, causal: the future: "seen", and, of course, wrong'
    grade.main([str(tmp_path / "class" / "ada"), "--out", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["score"] == 96 and sum(test["max_score"] for test in results["tests"]) == 100
    for words, sentence in [
        (["nowhere", "--out", "g.csv"], "is no folder"),
        ([tmp_path / "class", "--out", tmp_path / "g.txt"], "must be a file that ends in .csv"),
        ([tmp_path / "class", "--out", tmp_path / "g.json"], "holds several submissions"),
        ([tmp_path / "class"], "--out"),
    ]:
        with pytest.raises(SystemExit) as end:
            grade.main([str(word) for word in words])
        said = capsys.readouterr().err
        assert end.value.code == 2 and sentence in said and said.count("\n") == 1

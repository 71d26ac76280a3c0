"""The graders of tests/assignments fail on what blank.py leaves and on mistakes, and it is the student they grade."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

HOME = Path(__file__).resolve().parent.parent
GRADERS = HOME / "tests" / "assignments"
sys.path.insert(0, str(GRADERS))
import blank  # noqa: E402
import run_folder  # noqa: E402


def python(*words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=HOME, capture_output=True, encoding="utf-8", errors="replace")


def grade(folder, report):
    """Run the graders on a student's folder. Returns: {(file, test): failure message, or None}."""
    python("-m", "pytest", "-p", "no:cacheprovider", GRADERS, "--student", folder, f"--junitxml={report}")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = [child.get("message") for child in case if child.tag != "properties"]
        outcomes[case.get("classname").rpartition(".")[2], case.get("name")] = failures[0] if failures else None
    return outcomes


def test_every_grader_fails_on_the_blank_and_says_which_exercise(tmp_path):
    made = python(GRADERS / "blank.py", tmp_path / "blank")
    assert made.returncode == 0 and str(tmp_path / "blank") in made.stdout
    outcomes = grade(tmp_path / "blank", tmp_path / "report.xml")
    assert len({file for file, _ in outcomes}) == 10 and len(outcomes) > 100
    for (file, test), message in outcomes.items():
        exercise = re.match(r"test_(\d+)_", file)[1]
        assert message and re.match(rf"(NotImplementedError|AssertionError): exercise {exercise}: ", message), test


def test_signatures_and_docstrings_stay_and_bodies_go(tmp_path):
    blank.main([str(tmp_path / "some"), "2", "5"])
    blank.main([str(tmp_path / "all")])
    for name in ("data.py", "model_gpt.py", "model_mamba.py", "scan.py", "evaluate.py", "train.py", "solutions.py"):
        ours = (GRADERS if name == "solutions.py" else HOME) / name
        before = ours.read_bytes().split(b"\n")
        for folder, exercises in (("some", {2, 5}), ("all", set(range(11)))):
            after = (tmp_path / folder / name).read_bytes().split(b"\n")
            raised = [line for line in after if b"raise NotImplementedError" in line]
            expected = [e for e, file, *_ in blank.BODIES if file == name and e in exercises]
            assert sorted(expected) == sorted(int(re.search(rb'"exercise (\d+): ', line)[1]) for line in raised)
            kept = iter(before)  # all other lines are lines of the file, in their order
            assert all(line in kept for line in after if line not in raised)
            compile(b"\n".join(after), name, "exec")


def test_a_class_gets_the_graders_and_none_of_the_answers(tmp_path):
    blank.main([str(tmp_path / "class"), "--for-class"])
    blank.main([str(tmp_path / "all")])
    files = {str(path.relative_to(tmp_path / "class")) for path in (tmp_path / "class").rglob("*") if path.is_file()}
    own = {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*") if path.is_file()}
    graders = {f"tests/assignments/{path.name}" for path in GRADERS.glob("test_*.py")}
    assert files - own == graders | {"pytest.ini", "tests/conftest.py"} | {
        f"tests/assignments/{name}.py" for name in ("conftest", "run_folder", "sizes")
    }
    for exercise, file, name, _ in blank.BODIES:
        text = (tmp_path / "class" / file).read_text(encoding="utf-8")
        assert f'raise NotImplementedError("exercise {exercise}: ' in text
    assert not any("def is_path_star" in path.read_text() and "pipe, slash" in path.read_text()
                   for path in (tmp_path / "class").rglob("*.py"))
    page = (tmp_path / "class" / "ASSIGNMENTS.md").read_text(encoding="utf-8")
    assert "## 10. " in page and "Oral questions" not in page
    assert "--student ." in page and "homework" not in page and "blank.py" not in page
    assert all(words in (HOME / "ASSIGNMENTS.md").read_text(encoding="utf-8") for words in blank.IN_CLASS)
    assert "Set for you" not in page and "0.17" not in (tmp_path / "class" / "experiments.json").read_text()
    blank.main([str(tmp_path / "week"), "1", "6", "--for-class"])
    assert "NotImplementedError" not in (tmp_path / "week" / "data.py").read_text(encoding="utf-8")  # train.py runs
    assert "NotImplementedError" in (tmp_path / "week" / "solutions.py").read_text(encoding="utf-8")
    assert "**Set for you**: 1, 6.\n" in (tmp_path / "week" / "ASSIGNMENTS.md").read_text(encoding="utf-8")
    assert "0.17" not in (tmp_path / "week" / "experiments.json").read_text()  # our answer to 7, which was not set
    command = [sys.executable, "-m", "pytest", "-q", "tests/assignments/test_1_checker.py", "--student", "."]
    done = subprocess.run(command, cwd=tmp_path / "class", capture_output=True, text=True)
    assert done.returncode == 1 and "exercise 1: prove that one example" in done.stdout


# Wrong answers, made of right ones: what is added to the end of a student's file, and the grader that must notice.
# Those of one list are made in one folder, and no grader but theirs may complain.
MISTAKES = {
    "files of the lab": [
        ("solutions.py", "test_1_checker", """# where the path ends is not compared with the goal
right_1 = is_path_star
is_path_star = lambda prefix, path, *sizes: right_1(prefix[:-2] + path[-1:] + prefix[-1:], path, *sizes)
"""),
        ("data.py", "test_2_layouts", """# teacherless shows the path
right = layout
layout = lambda objective, *others: (right("next" if objective == "teacherless" else objective, *others))
"""),
        ("model_gpt.py", "test_3_attention", """# no mask
import types
F = types.SimpleNamespace(**vars(F))
F.scaled_dot_product_attention = lambda q, k, v, **_: nn.functional.scaled_dot_product_attention(q, k, v)
"""),
        ("model_mamba.py", "test_4_scan", """# B and C change places
right = selective_scan_reference
selective_scan_reference = lambda x, dt, A, B, C, D, h: right(x, dt, A, C, B, D, h)
"""),
        ("evaluate.py", "test_5_decoding", """# the first token is forgotten
right = write_on
write_on = lambda model, first, length, cache: right(model, 0 * first, length, cache)
"""),
        ("solutions.py", "test_10_in_weights", """# the held-out arms' edges are not shown either
right_10 = memorise
memorise = lambda arms, held_out, num_nodes: right_10(arms[: len(arms) - held_out], 0, num_nodes)
"""),
    ],
    "measuring and training": [
        ("solutions.py", "test_6_cheat_rate", """# the wrong arm is another graph's
right_6 = cheat_rate
cheat_rate = lambda model, prefix, path, num_nodes: right_6(model, prefix, path.roll(1, dims=0), num_nodes)
"""),
        ("train.py", "test_8_heads", """# all heads at once
def add_gradients(model, inputs, targets):
    trunk, l = model.trunk(inputs), targets.shape[1]
    logits = [model.head(trunk, k, l).transpose(1, 2) for k in range(targets.shape[2])]
    loss = sum(F.cross_entropy(row, targets[:, :, k], ignore_index=data.IGNORE) for k, row in enumerate(logits))
    loss.backward()
    return loss.item()
"""),
        ("solutions.py", "test_9_masked", """# a whole batch is hidden, or none of it
right_9 = masked_layout
masked_layout = lambda prefix, path, num_nodes, share, generator: right_9(
    prefix, path, num_nodes, float(torch.rand(1, generator=generator) < share), generator)
"""),
        ("scan.py", "test_4_scan", """# the gradients of B and C change places
right = FastScan.backward
FastScan.backward = staticmethod(lambda *given: [right(*given)[i] for i in (0, 1, 2, 4, 3, 5, 6)])
"""),
    ],
    "what is easily overlooked": [
        ("solutions.py", "test_1_checker", """# edges too many are not looked at
right_1 = is_path_star
def is_path_star(prefix, path, deg, path_len, num_nodes):
    return right_1(prefix[-3 * deg * (path_len - 1) - 3 :], path, deg, path_len, num_nodes)
"""),
        ("data.py", "test_2_layouts", """# all objectives have the rows of multi
right = layout
def layout(objective, prefix, path, num_nodes, reverse=False, n_future=1):
    inputs, targets = right(objective, prefix, path, num_nodes, reverse, n_future)
    return inputs, targets.expand(-1, -1, n_future)
"""),
        ("model_gpt.py", "test_3_attention", """# queries and keys change places
right = Attention.forward
def swapped(attention, *given):
    before = [(p, p.data) for p in attention.c_attn.parameters()]
    for p, data in before:
        p.data = data.view(3, -1)[[1, 0, 2]].view_as(data)
    y = right(attention, *given)
    for p, data in before:
        p.data = data
    return y
Attention.forward = swapped
"""),
        ("model_mamba.py", "test_4_scan", """# autograd does not find its way through it
right = selective_scan_reference
def selective_scan_reference(*given):
    y, h = right(*(v.detach() for v in given))
    return y + 0 * given[0], h + 0 * given[-1]
"""),
        ("train.py", "test_8_heads", """# the parts of a large batch weigh as much as the whole
right = add_gradients
def add_gradients(model, inputs, targets):
    parts = math.ceil(inputs.numel() * model.config.n_embd / IN_CACHE)
    return sum(right(model, x, y) for x, y in zip(inputs.chunk(parts), targets.chunk(parts)))
"""),
    ],
}


@pytest.mark.parametrize("mistakes", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_noticed_and_right_answers_are_not_blamed(tmp_path, mistakes):
    blank.copy_lab(tmp_path / "student")
    for file, _, mistake in mistakes:
        with open(tmp_path / "student" / file, "a", encoding="utf-8") as end:
            end.write("\n\n" + mistake)
    outcomes = grade(tmp_path / "student", tmp_path / "report.xml")
    blamed = {file for (file, _), message in outcomes.items() if message and "is a run of ours" not in message}
    assert blamed == {grader for _, grader, _ in mistakes}


def test_a_run_must_be_whole_and_the_students_own(tmp_path):
    name = "next_gpt_2_5_seed_101"
    config, log = run_folder.read_run(HOME, f"results/{name}", 6)
    assert log[-1]["step"] == config["steps"]
    shutil.copytree(HOME / "results" / name, tmp_path / name)
    stopped = f"stopped at step {log[-2]['step']} of {config['steps']}"
    for lines, fault in ((len(log), "is a run of ours"), (len(log) - 1, stopped)):
        kept = [json.dumps(record) for record in log[:lines]]
        (tmp_path / name / "log.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        with pytest.raises(AssertionError, match=f"exercise 6: .*{fault}"):
            run_folder.read_run(tmp_path, name, 6)
    for nothing in ("", "nowhere"):
        with pytest.raises(AssertionError, match="exercise 7: experiments.json must name a run's folder"):
            run_folder.read_run(tmp_path, nothing, 7)


# ---------------------------------------------------------------------------------------------------------
# Bad input is one sentence


@pytest.mark.parametrize("words, message", [
    (["full"], "exists and is not empty"),
    (["new", "11"], "there is no exercise 11"),
    (["--foo"], "is no flag of mine"),
    (["new", "1", "--forclass"], "--forclass is no flag of mine"),
    (["--for-class", "new"], "name the folder first"),
    ([str(HOME / "results" / "homework")], "lies inside the lab"),
    ([], "name the folder"),
])
def test_blank_refuses(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        blank.main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


@pytest.mark.parametrize("text, sentence", [
    ('{"6": {"predicted": {"next": 0,5}}}', "experiments.json cannot be read"),
    ('{"7": {}}', "experiments.json lacks '6'"),
    ('{"6": {"predicted": {"next": 0.5, "multi": 0.5}}}', "experiments.json lacks 'why'"),
])
def test_a_sheet_that_cannot_be_read_is_one_sentence(tmp_path, text, sentence):
    blank.copy_lab(tmp_path / "student")
    (tmp_path / "student" / "experiments.json").write_text(text, encoding="utf-8")
    grader = GRADERS / "test_6_cheat_rate.py"
    answer = python("-m", "pytest", "-q", grader, "-k", "prediction", "--student", tmp_path / "student")
    said = [line for line in answer.stdout.splitlines() if sentence in line]
    assert answer.returncode == 1 and said and "Traceback" not in answer.stdout
    assert len(answer.stdout.strip().splitlines()) < 12


def test_a_folder_that_cannot_be_graded_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    spec = importlib.util.spec_from_file_location("graders_conftest", GRADERS / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    for folder, message in (("nowhere", "is no folder"), ("empty", "holds no data.py")):
        config = SimpleNamespace(getoption=lambda _: folder, invocation_params=SimpleNamespace(dir=tmp_path))
        with pytest.raises(pytest.UsageError, match=message):
            conftest.pytest_configure(config)

    blank.main([str(tmp_path / "broken")])
    (tmp_path / "broken" / "data.py").write_text("def layout(:\n", encoding="utf-8")
    answer = python("-m", "pytest", GRADERS / "test_2_layouts.py", "--student", tmp_path / "broken")
    said = answer.stdout + answer.stderr
    assert answer.returncode != 0 and "data.py cannot be imported" in said and len(said.strip().splitlines()) == 1


def test_the_exercises_are_ten_and_the_text_has_them_all():
    text = (HOME / "ASSIGNMENTS.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+)\.", text, re.M) == [str(n) for n in range(1, 11)]
    assert {exercise for exercise, *_ in blank.BODIES} | set(map(int, blank.EXPERIMENTS)) == set(range(1, 11))
    for path in GRADERS.glob("test_*.py"):
        assert f"`{path.name}`" in text

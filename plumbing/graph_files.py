"""The graphs of a run that stay the same: test sets, fixed training sets, and text files of graphs.

A file has one graph per line, 3,5|7,9|5,2|3,7/3,9=3,7,9, the form of the paper's released files
(deg_2_path_5_nodes_50_test_20000.txt and others), so that these train and test here unchanged.
"""

import array
import functools
import hashlib
import io
import os
import re
from types import SimpleNamespace

import numpy
import torch

import data

LINE = re.compile(
    r"((?:[0-9]{1,9},[0-9]{1,9}[|])*[0-9]{1,9},[0-9]{1,9})"  # the edges
    r"/([0-9]{1,9},[0-9]{1,9})="  # start and goal
    r"([0-9]{1,9}(?:,[0-9]{1,9})+|)"  # the path, or nothing where a question is asked
)
LONGEST_LINE = 1_000_000  # characters; an endless line is refused, not read into memory
FILES = ("train_file", "test_file")  # the settings that name such a file


def write_graphs(file, prefix, path):
    """Write graphs to an open text file, one a line: prefix (B, P) and path (B, l), int64."""
    edges, start, goal = data.split_prefix(prefix)
    for e, s, g, p in zip(edges.tolist(), start.tolist(), goal.tolist(), path.tolist()):
        file.write("|".join(f"{a},{b}" for a, b in e) + f"/{s},{g}=" + ",".join(map(str, p)) + "\n")


def read_graphs(file_name, num_nodes):
    """Read a file of graphs, all of one shape. Empty lines and blanks around marks are skipped.

    Returns: prefix (M, P) and path (M, path_len), int64, as from data.sample_graphs.
    Raises: ValueError for the first line that is not a path-star graph with its path, naming file,
        line and fault; for a line of another shape than the first; for a file without graphs, and
        for one in UTF-16. OSError when the file cannot be opened.
    """
    # One flat array of 4-byte numbers: a list of Python integers would take ten times the memory.
    numbers, shape, count, line_number = array.array("i"), None, 0, 0
    with open(file_name, "rb") as raw:  # opened once, for it may be a pipe
        if raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{file_name} is text in UTF-16; save it as UTF-8 or ASCII")
        # "utf-8-sig" drops a byte order mark.
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")
        while line := file.readline(LONGEST_LINE):
            line_number += 1
            if line.isspace():
                continue
            try:
                row, deg, path_len = parse_graph(line, num_nodes)
                shape = shape or (deg, path_len)
                if (deg, path_len) != shape:
                    raise ValueError(
                        f"the graph is a G({deg},{path_len}), but the first line's is a"
                        f" G({shape[0]},{shape[1]})"
                    )
            except ValueError as fault:
                raise ValueError(f"{file_name}, line {line_number}: {fault}") from None
            numbers.extend(row)
            count += 1
    if shape is None:
        raise ValueError(
            f"{file_name} holds no graph; give a file with one graph per line, like"
            " 3,5|7,9|5,2|3,7/3,9=3,7,9"
        )
    deg, path_len = shape
    rows = torch.frombuffer(numbers, dtype=torch.int32).view(count, -1).long()
    return from_rows(rows, deg, path_len, num_nodes)


def from_rows(rows, deg, path_len, num_nodes):
    """Rows of numbers (B, …), int64: the edges, then start and goal, then the path.

    Returns: prefix (B, P) and path (B, path_len), int64.
    """
    ends = 2 * deg * (path_len - 1)
    edges = rows[:, :ends].unflatten(1, (-1, 2))
    prefix = data.write_prefix(edges, rows[:, ends], rows[:, ends + 1], num_nodes)
    return prefix, rows[:, ends + 2 :].contiguous()


def read_question(text, s):
    """Read a graph without its path, 3,5|7,9|5,2|3,7/3,9=, of the shape that a run has.

    Returns: prefix (1, P) and path (1, l), int64; the path is the arm that ends in the goal.
    Raises: ValueError.
    """
    row, *shape = parse_graph(text, s.num_nodes, asks=True)
    if shape != [s.deg, s.path_len]:
        raise ValueError(
            f"the graph is a G({shape[0]},{shape[1]}), but the model was trained on"
            f" G({s.deg},{s.path_len}); give one of those"
        )
    return from_rows(torch.tensor([row]), s.deg, s.path_len, s.num_nodes)


def parse_graph(line, num_nodes, asks=False):
    """Read one line, and prove that it is a path-star graph with the path from start to goal.

    Arguments: asks, whether the line may end at `=`; its path is then found.
    Returns: the line's numbers in their order (a list of int), deg and path_len.
    Raises: ValueError that names the fault.
    """
    # Blanks around marks change nothing. (Splitting is linear in the line's length; a regular
    # expression for blanks beside marks would be quadratic.)
    line = "".join(part.strip(" \t") for part in re.split("([,|/=])", line.strip()))
    match = LINE.fullmatch(line)
    if not match or not (asks or match[3]):
        raise ValueError(
            f"{ascii(line[:40])} … is not of the form a,b|c,d|…/start,goal=start,…,goal"
        )
    parts = ([int(n) for n in re.split("[,|]", part) if n] for part in match.groups())
    edges, (start, goal), path = parts
    largest = max(*edges, *path, start, goal)
    if largest >= num_nodes and asks:
        raise ValueError(f"the model knows the labels 0 to {num_nodes - 1}, but not {largest}")
    if largest >= num_nodes:
        raise ValueError(
            f"label {largest} is out of range: --num_nodes is {num_nodes}; give {largest + 1} or"
            " more"
        )

    parents, children = edges[0::2], edges[1::2]
    first = [child for parent, child in zip(parents, children) if parent == start]  # one an arm
    child_of = {parent: child for parent, child in zip(parents, children) if parent != start}
    forks = len(child_of) + len(first) != len(parents)
    meets = len(set(children)) != len(children) or start in children
    if forks or meets or not first:
        raise ValueError(
            f"the edges are no path-star graph: from the start {start}, arms must leave that never"
            " meet or fork"
        )
    arms = []
    for node in first:
        arms.append([start, node])
        while arms[-1][-1] in child_of:
            arms[-1].append(child_of[arms[-1][-1]])
    path_len = len(arms[0])
    if any(len(arm) != path_len for arm in arms) or len(arms) * (path_len - 1) != len(parents):
        raise ValueError(
            f"the edges are no path-star graph: the arms from the start {start} differ in length,"
            " or edges lie off them"
        )
    path = path or next((arm for arm in arms if arm[-1] == goal), [])
    if not path:
        raise ValueError(f"no arm of the graph ends at the goal {goal}")
    shown = ",".join(map(str, path))
    if path not in arms and path[::-1] in arms:
        raise ValueError(
            f"the path {shown} is written from the goal to the start; write it from the start to"
            " the goal, and let --reverse turn it round"
        )
    if path not in arms:
        raise ValueError(f"the path {shown} is no arm of the graph")
    if path[-1] != goal:
        raise ValueError(f"the path ends at {path[-1]}, but the goal is {goal}")
    return edges + [start, goal] + path, len(arms), path_len


def fingerprint(prefix, path):
    """What identifies the graphs of a file, in their order: a string of 64 digits (SHA-256)."""
    return hashlib.sha256(prefix.numpy().tobytes() + path.numpy().tobytes()).hexdigest()


def read_files(s, given, flags=FILES):
    """Read --train_file and --test_file, whose graphs then set deg and path_len and bound n_test.

    Arguments: s, the settings. Its file_hashes hold the fingerprints of the graphs with which a
        resumed run was begun; for a new run they are filled in. given, the flags that fix deg and
        path_len (a dict).
    Returns: a dict from the flag's name to (prefix, path). Raises: ValueError, OSError.
    """
    files = {}
    for flag in flags:
        name = getattr(s, flag)
        if not name:
            continue
        try:
            files[flag] = read_graphs(name, s.num_nodes)
        except FileNotFoundError:
            raise ValueError(
                f"--{flag} {name} does not exist; put it back, or give train.py its place by"
                f" --{flag}"
            ) from None
        except IsADirectoryError:
            raise ValueError(f"--{flag} {name} is a folder; give a text file of graphs") from None
        for size, value in zip(("deg", "path_len"), data.graph_shape(*files[flag])):
            if given.setdefault(size, value) != value:
                raise ValueError(
                    f"--{size} is {given[size]}, but in {name} it is {value}; give another file, or"
                    " another value for a new run"
                )
            setattr(s, size, value)
        digest = fingerprint(*files[flag])
        if s.file_hashes.setdefault(flag, digest) != digest:
            raise ValueError(
                f"--{flag} {name} does not hold the graphs with which the run was begun; give the"
                " file that does"
            )
        setattr(s, flag, os.path.abspath(name))  # a run can then be resumed from any folder
    if "test_file" in files:
        there = len(files["test_file"][0])
        if s.n_test > there:
            print(f"{s.test_file} has {there:,} graphs; all of them are used")
        s.n_test = min(s.n_test or there, there)
    return files


# ------------------------------------------------------------------------------------------------
# What a seed decides

TEST, FIXED, ORDER, FRESH, HOLES = range(5)  # the purposes for which one seed draws random numbers


def generator_for(seed, purpose, step=0):
    """An independent source of randomness for one purpose at one step: a torch.Generator."""
    state = numpy.random.SeedSequence([seed, purpose, step]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


@functools.lru_cache(maxsize=1)
def epoch_order(n_train, seed, epoch):
    """The order in which one epoch goes through a fixed training set: (n_train,), int64."""
    return torch.randperm(n_train, generator=generator_for(seed, ORDER, epoch))


def test_graphs(s, files):
    """The graphs to evaluate on, read or drawn: prefix (M, P) and path (M, l), int64."""
    if "test_file" in files:
        return [part[: s.n_test] for part in files["test_file"]]
    generator = generator_for(s.seed, TEST)
    return data.sample_graphs(s.n_test, s.deg, s.path_len, s.num_nodes, generator)


def training_graphs(s, files, test):
    """The fixed training set, if there is one; it shares no graph with `test`.

    Returns: prefix (M, P) and path (M, l), or None for fresh graphs at every step; forbidden, the
        keys of the test graphs, (K,) int64. Raises: ValueError.
    """
    forbidden, fixed = data.graph_keys(test[0], s.num_nodes).unique(), None
    if "train_file" in files:
        prefix, path = files["train_file"]
        new = ~torch.isin(data.graph_keys(prefix, s.num_nodes), forbidden)
        fixed = prefix[new], path[new]
        if not new.all():
            print(f"{s.train_file}: {int((~new).sum())} of its {len(new)} graphs are test graphs,"
                  " and left out")
    elif s.n_train:
        shape, generator = (s.deg, s.path_len, s.num_nodes), generator_for(s.seed, FIXED)
        fixed = data.sample_new_graphs(s.n_train, *shape, generator, forbidden)
    if fixed and len(fixed[0]) == 0:
        raise ValueError(
            f"all graphs of --train_file {s.train_file} are test graphs; give a file with others"
        )
    if fixed and s.batch_size > len(fixed[0]):
        raise ValueError(
            f"--batch_size {s.batch_size} is more than the {len(fixed[0])} training graphs; give a"
            " smaller one"
        )
    return fixed, forbidden


def without(test, batches, num_nodes):
    """Leave out of `test`, prefix (M, P) and path (M, l), what occurs in any of the batches.

    Returns: such a pair. Raises: ValueError when no graph is left.
    """
    keys = data.graph_keys(test[0], num_nodes)
    new = torch.ones(len(keys), dtype=torch.bool)
    for prefix, _ in batches:
        new &= ~torch.isin(keys, data.graph_keys(prefix, num_nodes))
    if not new.any():
        raise ValueError(
            f"the run trained on all of the {len(new)} graphs; give others by --test_file or"
            " --n_test"
        )
    if not new.all():
        count = f"{int((~new).sum()):,} of the {len(new):,}"
        print(f"The run trained on {count} graphs; they are left out")
    return [part[new] for part in test]


def unseen_graphs(s, files, checkpoint, batch_of):
    """The graphs on which --eval_only measures a checkpoint: prefix (M, P) and path (M, l), int64.

    Graphs other than the run's own test graphs are compared with every graph that it trained on,
    all of which are drawn again by train.py's batch_of; those that it saw are left out.
    Raises: ValueError, OSError.
    """
    test, trained = test_graphs(s, files), SimpleNamespace(**checkpoint["settings"])
    its_own = s.file_hashes.get("test_file") == trained.file_hashes.get("test_file")
    if its_own and (s.n_test, s.test_file) == (trained.n_test, trained.test_file):
        return test
    trained.train_file = s.train_file  # which may have moved, and so may the run's test file
    if s.test_file and its_own:
        trained.test_file = s.test_file
    try:
        files = read_files(trained, {})
    except ValueError:
        names = " and ".join(getattr(trained, flag) for flag in FILES if getattr(trained, flag))
        raise ValueError(
            f"what the run trained on follows from {names}; put back what was there then"
        ) from None
    fixed, forbidden = training_graphs(trained, files, test_graphs(trained, files))
    batches = (batch_of(step, trained, fixed, forbidden) for step in range(checkpoint["step"]))
    test = without(test, batches, s.num_nodes)
    s.n_test = len(test[0])
    return test

"""Turn the flags that were given into valid settings, or into one sentence: what is wrong."""

import contextlib
import os
import sys
from types import SimpleNamespace

import torch

import data
from plumbing import pretrained
from plumbing.command_line import defaults_for, refuse, started
from plumbing.graph_files import FILES, read_files
from plumbing.processes import check_device
from plumbing.run_folder import load_checkpoint

# What may differ from the checkpoint's settings; the graph files may have moved, too.
MAY_CHANGE_ON_RESUME = ("steps", "eval_every", "device", "compile", "threads", "scan")
MAY_CHANGE_FOR_EVALUATION = ("n_test", "test_file", "device", "dtype", "threads", "scan")
MAY_BE_0 = ("n_train", "warmup", "seed", "threads")


@contextlib.contextmanager
def one_sentence_for_faults(given=(), program=None):
    """Run the body; end the program with one sentence for a fault that the user can mend."""
    program = program or started()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        sys.stdout = open(os.devnull, "w")  # Python would flush the broken one at its end
        refuse("standard output was closed before the end", program)
    except (ValueError, ImportError, FloatingPointError) as fault:
        refuse(fault, program)
    except OSError as fault:
        refuse(f"{fault.filename}: {fault.strerror}" if fault.filename else fault, program)
    except (MemoryError, RuntimeError) as fault:
        text, origin = str(fault), type(fault).__module__
        if isinstance(fault, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
            smaller = "--batch_size, --n_test, --n_train or model"
            refuse(f"there is not enough memory; give a smaller {smaller}", program, True)
        compiles = "compile" in given or "resume" in given  # a run that was begun with it
        if compiles and origin.startswith(("torch._dynamo", "torch._inductor")):
            remedy = "leave --compile out"
            if "compile" not in given:
                remedy = "this run was begun with --compile, which needs a compiler here, too"
            refuse(f"torch.compile failed ({text.splitlines()[0]}); {remedy}", program)
        raise
    except KeyboardInterrupt:
        sys.exit(f"\n{program}: stopped at once; a run goes on from its last checkpoint, if any")


def name_objective(given):
    """Replace the short flags --teacherless, --multi and --reverse by the objective that they name.

    Next-token prediction on reversed paths is the objective reverse, however it was asked for.
    Returns: a new dict. Raises: ValueError when two objectives are asked for.
    """
    given = dict(given)
    asked = [name for name in ("teacherless", "multi") if given.pop(name, False)]
    if "objective" in given:
        asked.append(given["objective"])
    if given.get("reverse") and set(asked) <= {"next"} and (asked or "resume" not in given):
        asked = ["reverse"]  # a resumed run has its objective; only --reverse is then compared
    if len(set(asked)) > 1:
        raise ValueError(
            f"{' and '.join(asked)} are two objectives; choose one (--reverse may go with either)"
        )
    if asked:
        given["objective"] = asked[0]
        given["reverse"] = given.get("reverse", False) or asked[0] == "reverse"
    return given


def check_sizes(deg, path_len, num_nodes):
    """Raise a ValueError with the remedy when G(deg, path_len) cannot be drawn from the labels."""
    if deg < 1:
        raise ValueError(f"--deg is {deg}, but a graph has at least 1 arm; give --deg 1 or more")
    if path_len < 2:
        raise ValueError(
            f"--path_len is {path_len}, but a path has a start and a goal; give 2 or more"
        )
    need = data.nodes_needed(deg, path_len)
    if need > num_nodes:
        raise ValueError(
            f"G({deg},{path_len}) has {need} nodes, but --num_nodes is {num_nodes};"
            f" give {need} or more"
        )


def check_settings(s):
    """Raise a ValueError, one sentence with value and remedy, when the settings cannot hold."""
    check_sizes(s.deg, s.path_len, s.num_nodes)
    for name, value in vars(s).items():
        if isinstance(value, int):  # --no_canon and the like are 0 or 1
            least = 0 if name in MAY_BE_0 or isinstance(value, bool) else 1
            bits = {"seed": 64, "threads": 10}.get(name, 31)
            if value < least:
                raise ValueError(f"--{name} is {value}; give {least} or more")
            if value >= 2**bits:
                raise ValueError(f"--{name} is {value}; give less than 2^{bits}")
    if not 0 < s.lr <= 1000:
        raise ValueError(f"--lr is {s.lr}; give a number above 0, at most 1000")
    if not 0 <= s.weight_decay <= 1000:
        raise ValueError(f"--weight_decay is {s.weight_decay}; give a number from 0 to 1000")
    if not 0 <= s.decay <= 1:
        raise ValueError(f"--decay is {s.decay}; give a share from 0 to 1")
    if s.model == "gpt" and s.n_embd % s.n_head:
        raise ValueError(
            f"--n_embd {s.n_embd} cannot be shared out over --n_head {s.n_head} heads; give a"
            " multiple of it"
        )
    if s.n_future > 1 and s.objective != "multi":
        raise ValueError(
            f"--n_future {s.n_future} needs --multi: the other objectives have one output head"
        )
    if s.n_future > s.path_len:
        raise ValueError(
            f"--n_future {s.n_future} is more than the {s.path_len} tokens of a path; give at most"
            " that"
        )
    if s.only_difficult and s.objective == "multi":
        raise ValueError(
            "--only_difficult trains on a single token of the path, and --multi on several at each"
            " place; leave one out"
        )
    if s.train_file and s.n_train:
        raise ValueError(
            f"--train_file {s.train_file} and --n_train {s.n_train} both say what to train on; give"
            " one"
        )
    if s.eval_only and not s.resume:
        raise ValueError(
            "--eval_only needs --resume and the folder of the run whose checkpoint is to be"
            " evaluated"
        )
    if s.scan == "triton" and s.device == "cpu":
        raise ValueError("--scan triton needs a GPU, but --device is cpu; give --scan fast")
    check_device(s.device)


def check_idea(s):
    """Raise a ValueError when the settings ask for more than the ideas of beyond/ can do."""
    asked = [f"--{name}" for name in ("reverse", "only_difficult", "init_from") if getattr(s, name)]
    asked += [f"--objective {s.objective}"] * (s.objective != "next")
    asked += [f"--model {s.model}"] * (s.model != "gpt")
    asked += ["torchrun"] * (os.environ.get("WORLD_SIZE", "1") != "1")
    if asked:
        raise ValueError(
            f"{asked[0]} does not go with {s.idea}.py, which trains the GPT on targets of its own;"
            " leave it out"
        )


def settle(given, idea="train", reads=FILES):
    """Complete the flags that were given: from the checkpoint on --resume, else from the defaults.

    Arguments: idea, the name of the file that trains: "train", or one of beyond/; reads, the files
        of graphs to read, of those that a run has.
    Returns: s, a namespace of all settings; files, as from read_files; the checkpoint, or None.
    Raises: ValueError, OSError, ImportError.
    """
    given = name_objective(given)
    # --teacherless and --multi are kept as --objective; file_hashes are those of graph_files.py.
    kept = defaults_for("gpt") | {"file_hashes": {}, "idea": idea}
    del kept["teacherless"], kept["multi"]
    if "resume" in given:
        types = {name: type(default) for name, default in kept.items()}
        checkpoint = load_checkpoint(given["resume"], types)
        trained = checkpoint["settings"]["idea"]
        if trained != idea:
            script = "train.py" if trained == "train" else f"beyond/{trained}.py"
            raise ValueError(
                f"{given['resume']} was trained by {script}; only that can go on with it"
            )
        s, files = settle_resumed(given, checkpoint, reads)
    else:
        checkpoint = None
        decided = pretrained.settings_of(given) if given.get("init_from") else {}
        defaults = defaults_for((decided | given).get("model", "gpt"))
        defaults = {name: default for name, default in defaults.items() if name in kept}
        s = SimpleNamespace(**defaults | {"file_hashes": {}, "idea": idea} | decided | given)
        files = read_files(s, given)
        heads = min(4 if s.model == "gpt" else 3, s.path_len) if s.objective == "multi" else 1
        s.n_future = s.n_future or heads
    s.n_test = s.n_test or 2000
    if s.device == "auto":
        s.device = "cuda" if torch.cuda.is_available() else "cpu"
    check_settings(s)
    return s, files, checkpoint


def settle_resumed(given, checkpoint, reads):
    """The settings of a checkpoint with the few that may change. Returns and raises: as settle."""
    before, evaluates = checkpoint["settings"], given.get("eval_only", False)
    may_change = MAY_CHANGE_FOR_EVALUATION if evaluates else MAY_CHANGE_ON_RESUME
    may_change += tuple(flag for flag in FILES if before[flag] and flag not in may_change)
    for name, value in given.items():
        if name == "reverse" and not value:  # --teacherless alone says nothing of --reverse
            continue
        if value != before[name] and name not in (*may_change, "resume", "eval_only"):
            raise ValueError(
                f"--{name} {value} cannot change on --resume: this run has"
                f" {before[name] if before[name] != '' else 'none'}. Leave it out; what may change"
                f" is {', '.join(f'--{name}' for name in may_change)}"
            )
    s = SimpleNamespace(**before | given | {"reverse": before["reverse"]})
    s.file_hashes = dict(before["file_hashes"])
    if evaluates and given.get("test_file"):
        s.file_hashes.pop("test_file", None)  # other graphs
        s.n_test = given.get("n_test", 0)  # 0: all that the file has
    sizes = {"deg": s.deg, "path_len": s.path_len}
    files = read_files(s, sizes, set(reads) - {"train_file"} if evaluates else reads)
    if s.steps < checkpoint["step"]:
        raise ValueError(
            f"--steps is {s.steps}, but the run has come to step {checkpoint['step']}; give that or"
            " more, or start a new run"
        )
    return s, files

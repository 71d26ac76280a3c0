"""Train a Transformer or a Mamba to find the path, with one of four objectives, and watch what it learns.

    python train.py                  next-token prediction: the first step stays at chance
    python train.py --reverse        the same on reversed paths: solved
    python train.py --teacherless    every token of the path at once, none of it revealed: solved
    python train.py --multi          several future tokens from each position
    python train.py --help           everything else

A run leaves one folder with log.jsonl (a line an evaluation), config.json (every setting) and ckpt.pt. This file in
order: the settings, the graphs, the optimisers and the loss, the loop, several processes, what is printed, the
folder, main.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
import torch.nn.functional as F

import data
import model_mamba
import pretrained
from checkpoint import append_line, hold, keep_lines_before, load_checkpoint, restore, save_checkpoint, write_whole
from evaluate import evaluate
from model_gpt import GPT, GPTConfig
from model_mamba import Mamba, MambaConfig
from muon import Muon

# ---------------------------------------------------------------------------------------------------------
# The settings. Each is a flag of the same name; a setting that is not given on the command line has the value that stands
# here, which may differ between the models. The graph is the smallest of the paper's, with its 50 labels. The rest is
# what learned the path in every seed on two CPU cores within minutes (results/LOG.md tells the search).

SETTINGS = {
    "the task": dict(
        deg=(2, "arms that leave the start node"),
        path_len=(5, "nodes of an arm, counted with the start"),
        num_nodes=(50, "node labels to draw from"),
        n_train=(0, "graphs in a fixed training set, the paper's is 200000; 0: fresh graphs at every step"),
        n_test=(0, "unseen graphs to evaluate on, at most those of --test_file; 0: 2000, or all of the file's"),
        train_file=("", "train on the graphs of this text file, one a line like 3,5|7,9|5,2|3,7/3,9=3,7,9"),
        test_file=("", "evaluate on the graphs of this text file"),
    ),
    "the objective": dict(
        objective=("next", "what is predicted from what: data.py draws all four"),
        reverse=(False, "write the path from the goal to the start; alone it is --objective reverse"),
        teacherless=(False, "short for --objective teacherless"),
        multi=(False, "short for --objective multi"),
        n_future=(
            0,
            "with --multi: output heads, head k predicts the token k ahead; 0: 4, or path_len if that is less",
        ),
        only_difficult=(False, "train on the loss of the first step alone; not with --multi"),
    ),
    "the model": dict(
        model=("gpt", "a Transformer or a Mamba"),
        n_layer=({"gpt": 7, "mamba": 4}, "blocks"),
        n_head=(4, "attention heads of the GPT"),
        n_embd=(64, "channels"),
        no_canon=(False, "the GPT without its Canon layers, as in GPT-2"),
        no_qk_norm=(False, "the GPT without the norm of queries and keys, as in GPT-2"),
        init_from=(
            "",
            "start from published weights: gpt2, gpt2-large, mamba-130m and others, or a folder that has them; sets the"
            " sizes, takes out Canon and QK-norm, and unless they are given sets --optimizer adamw --lr 1e-4",
        ),
        scan=("auto", "how Mamba computes its scan; auto: triton on a GPU, fast elsewhere"),
    ),
    "the optimiser": dict(
        optimizer=("muon", "muon: Muon for the blocks' matrices and AdamW for the rest; adamw: AdamW for all"),
        lr=({"gpt": 4e-3, "mamba": 4e-3}, "AdamW's learning rate; Muon's is ten times that"),
        batch_size=(256, "graphs a step"),
        steps=({"gpt": 1000, "mamba": 1000}, "steps"),
        warmup=(10, "steps over which the learning rate rises"),
        decay=({"gpt": 0.5, "mamba": 0.5}, "share of the steps, the last ones, over which the learning rate falls to 0; 0: it stays"),
    ),
    "the run": dict(
        seed=(1, "fixes the whole run on a CPU, for one number of threads"),
        eval_every=(50, "steps between evaluations; each is a line of the log, and a checkpoint"),
        device=("auto", "cpu, cuda, cuda:1, mps; auto: cuda where there is one, else cpu"),
        dtype=("float32", "bfloat16: mixed precision"),
        compile=(False, "torch.compile the model"),
        threads=(0, "CPU threads; 0 leaves the choice to PyTorch"),
        out_dir=("", "the run's folder; if not given, runs/ and a name made of what matters"),
        resume=(
            "",
            "go on with the run in this folder, to the same numbers as if it had never stopped; with other --steps it goes on"
            " too, but to other numbers, since the learning rate follows the steps",
        ),
        eval_only=(
            False,
            "with --resume: evaluate the checkpoint and stop, on the run's test graphs, or on others by --test_file or --n_test",
        ),
    ),
}
CHOICES = dict(
    objective=data.OBJECTIVES,
    model=("gpt", "mamba"),
    scan=("auto", "reference", "fast", "triton"),
    optimizer=("muon", "adamw"),
    dtype=("float32", "bfloat16"),
)


def defaults_for(model):
    """Every setting as it stands above, for one of the models: a dict."""
    settings = {name: default for group in SETTINGS.values() for name, (default, _) in group.items()}
    return {name: d[model] if isinstance(d, dict) else d for name, d in settings.items()}


DEFAULTS = defaults_for("gpt")
# --teacherless and --multi name an objective, and are kept as --objective; file_hashes are fingerprint's.
KEPT = DEFAULTS.keys() - {"teacherless", "multi"} | {"file_hashes"}
FILES = ("train_file", "test_file")
MAY_CHANGE_ON_RESUME = ("steps", "eval_every", "device", "compile", "threads")  # and a file's place
MAY_CHANGE_FOR_EVALUATION = ("n_test", "test_file", "device", "dtype", "threads")


def parse_command_line(argv):
    """Read the flags. Returns: a dict of those that were given, without the defaults."""
    summary, examples = __doc__.split("\n\n")[:2]
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=f"{summary}\n\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for title, group in SETTINGS.items():
        flags = parser.add_argument_group(title)
        for name, (default, explanation) in group.items():
            if isinstance(default, bool):
                flags.add_argument(f"--{name}", action="store_true", help=explanation)
            else:
                shown = f" (default: {default})" if default else ""
                if isinstance(default, dict):
                    shown = f" (default: {default['gpt']} for the GPT, {default['mamba']} for Mamba)"
                    default = default["gpt"]
                metavar = None if name in CHOICES else {int: "N", float: "X", str: "NAME"}[type(default)]
                flags.add_argument(
                    f"--{name}",
                    type=type(default),
                    choices=CHOICES.get(name),
                    metavar=metavar,
                    help=explanation + shown,
                )
    parser.error = refuse  # one sentence, without the list of flags
    return vars(parser.parse_args(argv))


def refuse(message):
    """Say in one sentence what cannot be done, and leave with exit status 2."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(2)


def name_objective(given):
    """Replace the short flags --teacherless, --multi and a lone --reverse by the objective that they name. Next-token
    prediction on reversed paths is the objective reverse, whichever way it was asked for.

    Returns: a new dict. Raises: ValueError when two objectives are asked for.
    """
    given = dict(given)
    asked = [name for name in ("teacherless", "multi") if given.pop(name, False)]
    if "objective" in given:
        asked.append(given["objective"])
    if given.get("reverse") and set(asked) <= {"next"}:
        asked = ["reverse"]
    if len(set(asked)) > 1:
        raise ValueError(f"{' and '.join(asked)} are two objectives; choose one (--reverse may go with either)")
    if asked:
        given["objective"] = asked[0]
        given["reverse"] = given.get("reverse", False) or asked[0] == "reverse"
    return given


def check_settings(s):
    """Raise a ValueError, one sentence with the value and the remedy, when the settings cannot hold."""
    at_least_1 = "n_test", "n_future", "n_layer", "n_head", "n_embd", "batch_size", "steps", "eval_every"
    at_least_0 = "n_train", "warmup", "seed", "threads"
    for name, least in [(name, 1) for name in at_least_1] + [(name, 0) for name in at_least_0]:
        if s[name] < least:
            raise ValueError(f"--{name} is {s[name]}; give {least} or more")
    for name, value in s.items():
        if isinstance(value, int) and value >= (2**64 if name == "seed" else 2**31):
            raise ValueError(f"--{name} is {value}; give less than 2^{64 if name == 'seed' else 31}")
    if not 0 < s["lr"] < math.inf:
        raise ValueError(f"--lr is {s['lr']}; give a number above 0")
    if not 0 <= s["decay"] <= 1:
        raise ValueError(f"--decay is {s['decay']}; give a share from 0 to 1")
    data.check_sizes(s["deg"], s["path_len"], s["num_nodes"])
    if s["model"] == "gpt" and s["n_embd"] % s["n_head"]:
        raise ValueError(
            f"--n_embd {s['n_embd']} cannot be shared out over --n_head {s['n_head']} heads; give a multiple of it"
        )
    if s["n_future"] > 1 and s["objective"] != "multi":
        raise ValueError(f"--n_future {s['n_future']} needs --multi: the other objectives have one output head")
    if s["n_future"] > s["path_len"]:
        raise ValueError(
            f"--n_future {s['n_future']} is more than the {s['path_len']} tokens of a path; give at most that"
        )
    if s["only_difficult"] and s["objective"] == "multi":
        raise ValueError(
            "--only_difficult trains on a single token of the path, and --multi on several at each place; leave one out"
        )
    if s["train_file"] and s["n_train"]:
        raise ValueError(
            f"--train_file {s['train_file']} and --n_train {s['n_train']} both say what to train on; give one"
        )
    if s["eval_only"] and not s["resume"]:
        raise ValueError("--eval_only needs --resume and the folder of the run whose checkpoint is to be evaluated")
    if s["scan"] == "triton" and s["device"] == "cpu":
        raise ValueError("--scan triton needs a GPU, but --device is cpu; give --scan fast")
    try:
        torch.zeros(1, device=s["device"]).item()  # a number comes back, which the device "meta" cannot give
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {s['device']} is not to be had here; give --device cpu") from None


# ---------------------------------------------------------------------------------------------------------
# The graphs. What a step trains on depends on the seed and the step alone, so a resumed run has nothing to remember.

TEST, FIXED, ORDER, FRESH = range(4)  # the purposes for which one seed draws random numbers


def generator_for(seed, purpose, step=0):
    """The source of randomness for one purpose at one step, a torch.Generator; different ones share nothing."""
    state = numpy.random.SeedSequence([seed, purpose, step]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def read_files(s, given, flags=FILES):
    """Read --train_file and --test_file; their graphs then say what deg and path_len are, and bound n_test.

    Arguments: given, the flags that bind deg and path_len; s, the settings, whose file_hashes hold a fingerprint of
        the graphs that a resumed run was begun with, and get one of those of a new run.
    Returns: a dict from the flag's name to (prefix, path). Raises: ValueError, OSError.
    """
    files = {}
    for flag in flags:
        if not s[flag]:
            continue
        try:
            files[flag] = data.read_graphs(s[flag], s["num_nodes"])
        except FileNotFoundError:
            raise ValueError(f"--{flag} {s[flag]} does not exist; give the file's place by --{flag}") from None
        except IsADirectoryError:
            raise ValueError(f"--{flag} {s[flag]} is a folder; give a text file of graphs") from None
        for name, value in zip(("deg", "path_len"), data.graph_shape(*files[flag])):
            if given.setdefault(name, value) != value:
                raise ValueError(
                    f"--{name} is {given[name]}, but in {s[flag]} it is {value}; leave the flag out or give another file"
                )
            s[name] = value
        digest = fingerprint(*files[flag])
        if s["file_hashes"].setdefault(flag, digest) != digest:
            raise ValueError(
                f"--{flag} {s[flag]} does not hold the graphs with which the run was begun; give the file that does"
            )
        s[flag] = os.path.abspath(s[flag])  # so that a run can be resumed from any folder
    if "test_file" in files:
        there = len(files["test_file"][0])
        if s["n_test"] > there:
            print(f"{s['test_file']} has {there:,} graphs; all of them are taken")
        s["n_test"] = min(s["n_test"] or there, there)
    return files


def fingerprint(prefix, path):
    """What identifies the graphs of a file, in their order: a string of 64 digits."""
    return hashlib.sha256(prefix.numpy().tobytes() + path.numpy().tobytes()).hexdigest()


def test_graphs(s, files):
    """The graphs to evaluate on, of --test_file or drawn from the seed: prefix (M, P) and path (M, l), int64."""
    if "test_file" in files:
        return [part[: s["n_test"]] for part in files["test_file"]]
    return data.sample_graphs(s["n_test"], s["deg"], s["path_len"], s["num_nodes"], generator_for(s["seed"], TEST))


def prepare_graphs(s, files):
    """The graphs that stay the same through the run, none of them in both sets.

    Returns: test, a pair prefix (M, P) and path (M, l); train, such a pair or None for fresh graphs at every step; and
        forbidden, the sorted keys of the test graphs. Raises: ValueError.
    """
    test = test_graphs(s, files)
    forbidden = data.graph_keys(test[0], s["num_nodes"]).unique()
    train = None
    if "train_file" in files:
        prefix, path = files["train_file"]
        new = ~data.is_in(data.graph_keys(prefix, s["num_nodes"]), forbidden)
        train = prefix[new], path[new]
        if not new.all():
            print(f"{s['train_file']}: {int((~new).sum())} of its {len(new)} graphs are test graphs, and left out")
    elif s["n_train"]:
        shape = s["deg"], s["path_len"], s["num_nodes"]
        train = data.sample_new_graphs(s["n_train"], *shape, generator_for(s["seed"], FIXED), forbidden)
    if train and s["batch_size"] > len(train[0]):
        raise ValueError(
            f"--batch_size {s['batch_size']} is more than the {len(train[0])} training graphs; give a smaller one"
        )
    return test, train, forbidden


@functools.lru_cache(maxsize=1)
def epoch_order(n_train, seed, epoch):
    """The order in which one epoch goes through a fixed training set: (n_train,), int64."""
    return torch.randperm(n_train, generator=generator_for(seed, ORDER, epoch))


def batch_of(step, s, train, forbidden):
    """The graphs of one step: prefix (B, P) and path (B, l), int64."""
    B = s["batch_size"]
    if train is None:
        shape = s["deg"], s["path_len"], s["num_nodes"]
        return data.sample_new_graphs(B, *shape, generator_for(s["seed"], FRESH, step), forbidden)
    prefix, path = train
    epoch, i = divmod(step, len(path) // B)  # the end of an epoch, if less than a batch, is left out
    rows = epoch_order(len(path), s["seed"], epoch)[i * B : (i + 1) * B]
    return prefix[rows], path[rows]


def not_trained_on(test, steps, s, train, forbidden):
    """Those of the graphs `test` that none of the first `steps` steps trained on, found by drawing all of these again.

    Arguments: test, prefix (M, P) and path (M, l); s, train and forbidden, those of the training. Returns: such a pair.
    Raises: ValueError when no graph is left.
    """
    keys = data.graph_keys(test[0], s["num_nodes"])
    new = torch.ones(len(keys), dtype=torch.bool)
    for step in range(steps):
        new &= ~torch.isin(keys, data.graph_keys(batch_of(step, s, train, forbidden)[0], s["num_nodes"]))
    if not new.any():
        raise ValueError(f"the run trained on all of the {len(keys)} graphs; give others by --test_file or --n_test")
    if not new.all():
        print(f"The run trained on {int((~new).sum()):,} of the {len(keys):,} graphs; they are left out")
    return [part[new] for part in test]


# ---------------------------------------------------------------------------------------------------------
# The optimisers and the loss


def make_model(s):
    """The model that the settings describe, its initial weights drawn from the seed."""
    torch.manual_seed(s["seed"])
    V = data.vocab_size(s["num_nodes"])
    if s["model"] == "mamba":
        return Mamba(MambaConfig(V, n_layer=s["n_layer"], n_embd=s["n_embd"], n_future=s["n_future"], scan=s["scan"]))
    T = data.prefix_length(s["deg"], s["path_len"]) + s["path_len"] - 1
    parts = dict(n_future=s["n_future"], canon=not s["no_canon"], qk_norm=not s["no_qk_norm"])
    return GPT(GPTConfig(V, T, s["n_layer"], s["n_head"], s["n_embd"], **parts))


def make_optimizers(model, s):
    """Muon for the matrices inside the blocks and AdamW for all else, or AdamW for everything. Returns: a list."""
    stacked, single, rest = [], [], []
    for name, p in model.named_parameters():
        in_block = name.split(".")[0] in ("h", "layers", "future")
        if s["optimizer"] == "adamw" or not in_block or p.ndim != 2 or name.endswith("A_log"):
            rest.append(p)
        else:
            (stacked if "c_attn" in name else single).append(p)
    optimizers = [torch.optim.AdamW(rest, s["lr"], betas=(0.9, 0.95), weight_decay=0.0)]
    if stacked or single:  # c_attn holds three matrices, those of the queries, the keys and the values
        groups = [{"params": params, "pieces": pieces} for params, pieces in ((stacked, 3), (single, 1)) if params]
        optimizers.append(Muon(groups, lr=10 * s["lr"]))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]  # of which the schedule gives a share
    return optimizers


def peak_of_schedule(s):
    """The largest share of the learning rate that any step has: below 1 where the rate falls before it has risen."""
    return max(schedule(step, s) for step in range(min(s["steps"], s["warmup"] + 1)))


def schedule(step, s):
    """The share of the learning rate at one step: it rises over the warm-up, and falls to 0 over the last `decay`."""
    return min(1.0, (step + 1) / (s["warmup"] + 1), (s["steps"] - step) / max(1, s["decay"] * s["steps"]))


CACHED = 2**18  # numbers, 1 MB: one layer's output for one part of a batch fits in a CPU core's own cache


def add_gradients(model, inputs, targets):
    """Run the model forward and backward, for every objective; gradients are added to the parameters'.

    The loss is the cross-entropy, a mean over the targets and a sum over the output heads (Gloeckle et al. 2024,
    section 2). The heads take turns, so that the logits of only one exist at a time: the trunk's output is
    cut off from its history, each head leaves its gradient at the cut, and then one backward pass takes the sum of
    them through the trunk. On a CPU the batch goes through in parts, which share the loss out among them: that is a
    fifth faster, since it is the memory, not the arithmetic, that most operations wait for.

    Arguments: inputs (B, T) and targets (B, l, K), int64. Returns: the loss, a float.
    """
    parts = math.ceil(inputs.numel() * model.config.n_embd / CACHED) if inputs.device.type == "cpu" else 1
    total = 0.0
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts)):
        trunk = model.trunk(x)  # (b, T, C)
        cut = trunk.detach().requires_grad_()
        for k in range(y.shape[2]):
            logits = model.head(cut, k, num_logits=y.shape[1])  # (b, l, V)
            loss = F.cross_entropy(logits.flatten(0, 1), y[:, :, k].flatten(), ignore_index=data.IGNORE)
            loss = loss * (len(x) / len(inputs))
            loss.backward()
            total += loss.item()
        if trunk.requires_grad:
            trunk.backward(cut.grad)
    return total


# ---------------------------------------------------------------------------------------------------------
# The loop


def train(s, folder, test, train_graphs, forbidden, checkpoint=None):
    """Run the loop to its end, evaluating on `test`, this process's share. Returns: the last line of the log, a dict.

    Ctrl-C ends it after the step under way, with a checkpoint; a second Ctrl-C ends it at once. Raises:
    FloatingPointError when the loss is no longer a number, with nothing saved over the last checkpoint; ValueError when
    a checkpoint, published weights or the graphs do not fit; OSError; SystemExit after Ctrl-C.
    """
    device = torch.device(s["device"])
    rank, world = this_process()
    model = make_model(s).to(device)
    optimizers = make_optimizers(model, s)
    step, loss, seconds = restore(model, optimizers, checkpoint) if checkpoint else (0, None, 0.0)
    if s["init_from"] and not checkpoint:
        pretrained.start_from(model, s["init_from"])
    if s["compile"]:
        # The scan stays as it is: its loops over time would be unrolled.
        model_mamba.selective_scan = torch.compiler.disable(model_mamba.selective_scan)
        model.trunk, model.head = torch.compile(model.trunk), torch.compile(model.head)
    autocast = mixed_precision(s)
    interrupted = catch_ctrl_c()

    began = time.monotonic() - seconds  # as if a resumed run had been in one piece
    tokens, training_seconds = 0, 0.0  # since the last evaluation
    record, stop = None, False
    while True:
        if step % s["eval_every"] == 0 or step == s["steps"]:
            with autocast:
                measured = evaluate(model, *test, s)
            record = {
                "step": step,
                "seconds": round(time.monotonic() - began, 2),
                "graphs": step * s["batch_size"],
                "loss": loss,
                "chance": 1 / s["deg"],
                **measured,
                "tokens_per_second": round(tokens / training_seconds) if tokens else None,
            }
            tokens, training_seconds = 0, 0.0
            if rank == 0:
                write_config(folder, s)
                append_line(folder / "log.jsonl", record)
                save_checkpoint(folder, step, loss, record["seconds"], model, optimizers, s)
        if record:
            show_progress(record, step, loss, time.monotonic() - began, s)
        if step == s["steps"]:
            return record
        if stop:
            if rank == 0:
                save_checkpoint(folder, step, loss, time.monotonic() - began, model, optimizers, s)
                print(f"\nStopped at step {step}. Go on with: python train.py --resume {quote(folder)}", file=sys.stderr)
            leave_processes(status=1)
            sys.exit(1)

        step_began = time.monotonic()
        prefix, path = batch_of(step, s, train_graphs, forbidden)
        inputs, targets = data.layout(s["objective"], prefix, path, s["num_nodes"], s["reverse"], s["n_future"])
        if s["only_difficult"]:
            difficult = -2 if s["reverse"] else 1
            kept, targets = targets[:, difficult].clone(), torch.full_like(targets, data.IGNORE)
            targets[:, difficult] = kept
        with autocast:
            loss = add_gradients(model, inputs[rank::world].to(device), targets[rank::world].to(device))
        loss, stop = share_gradients(model, loss, interrupted.is_set())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}, with --lr {s['lr']}; the last checkpoint is kept, but from it the"
                " run would come to the same: start again with a smaller learning rate"
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * schedule(step, s)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens, training_seconds = tokens + inputs.numel(), training_seconds + time.monotonic() - step_began


def catch_ctrl_c():
    """Make the first Ctrl-C set the event that is returned, and leave a second one to stop the program."""
    interrupted = threading.Event()

    def on_ctrl_c(number, frame):
        interrupted.set()
        if not dist.is_initialized():  # torchrun passes on to its processes a Ctrl-C that they have had already
            signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_ctrl_c)
    return interrupted


# ---------------------------------------------------------------------------------------------------------
# Several processes: torchrun --nproc_per_node=2 train.py … starts this program twice, with RANK and WORLD_SIZE in the
# environment. All draw the same batch, each learns from its share of it, and all take the same step. (PyTorch's
# DistributedDataParallel would share the gradients within backward, but add_gradients calls backward many times.)


def join_processes(s):
    """Under torchrun, meet the other processes; only the first of them prints. Raises: ValueError."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return
    if s["device"] not in ("cpu", "cuda"):
        raise ValueError(f"--device {s['device']} does not go with {world} processes; give cpu or cuda")
    if s["batch_size"] % world or s["n_test"] < world:
        raise ValueError(
            f"--batch_size {s['batch_size']} and --n_test {s['n_test']} cannot be shared out over {world} processes; give a"
            f" multiple of {world} and at least {world}"
        )
    if s["device"] == "cuda":
        rank_here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank_here >= gpus:
            raise ValueError(
                f"there is no GPU for process {rank_here + 1} of this machine, which has {gpus}; start fewer"
            )
        torch.cuda.set_device(rank_here)
    dist.init_process_group("nccl" if s["device"] == "cuda" else "gloo")
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")


def leave_processes(status=0):
    """Under torchrun, part from the other processes, all at once, and end this one."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(status)  # gloo's threads may still hold tensors, and abort if Python takes itself down around them


def this_process():
    """Returns: this process's number and how many there are; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_gradients(model, loss, stop):
    """Average the gradients over all processes, in place. Returns: the average loss, and whether any wants to stop."""
    if not dist.is_initialized():
        return loss, stop
    gradients = [p.grad for p in model.parameters()]
    extra = torch.tensor([loss, stop], dtype=torch.float32, device=gradients[0].device)
    together = torch.cat([g.flatten() for g in gradients] + [extra])  # one message for all of them
    dist.all_reduce(together)
    together[:-1] /= dist.get_world_size()
    parts = together.split([g.numel() for g in gradients] + [1, 1])
    for g, part in zip(gradients, parts):
        g.copy_(part.view_as(g))
    return parts[-2].item(), parts[-1].item() > 0


# ---------------------------------------------------------------------------------------------------------
# What is printed


def show_progress(record, step, loss, seconds, s):
    """A line that rewrites itself on a terminal; elsewhere one line an evaluation."""
    on_terminal = sys.stdout.isatty()
    if step != record["step"] and not on_terminal:
        return
    left = int(seconds * (s["steps"] - step) / step) if step else 0
    line = (
        f"step {step:>5}/{s['steps']}   loss {'  -  ' if loss is None else f'{loss:.3f}'}"
        f"   exact match {record['accuracy']:6.1%}"
        f"   difficult token {record['difficult']:6.1%} (chance {record['chance']:.1%})"
        f"   {step * s['batch_size'] / seconds:5.0f} graphs/s   {left // 60}:{left % 60:02} left"
    )
    if on_terminal and step < s["steps"]:
        print(line[: shutil.get_terminal_size().columns - 1], end="\r", flush=True)  # a line that wraps cannot be rewritten
    else:
        print(line, flush=True)


def conclude(record, folder, s):
    """Three sentences for a human: what was trained, what it reached against chance, where the log is."""
    kind = "Transformer" if s["model"] == "gpt" else "Mamba"
    time_taken = (
        f"{record['seconds'] / 60:.1f} minutes" if record["seconds"] > 90 else f"{record['seconds']:.0f} seconds"
    )
    print(
        f"\nA {kind} of {s['n_layer']} layers saw {record['graphs']:,} graphs G({s['deg']},{s['path_len']}) with the"
        f" objective {run_name(s)!r}, in {time_taken}.\nOf {s['n_test']:,} graphs that it had not seen, it solves"
        f" {record['accuracy']:.1%}, and takes the right first step in {record['difficult']:.1%}, where a guess is right"
        f" in {record['chance']:.1%}.\nThe log is {folder / 'log.jsonl'}; to see it: python plot.py {quote(folder)}"
    )


def print_measurements(step, measured, s):
    """What --eval_only prints: every number of `measured`, from evaluate, a line each."""
    graphs = f"{s['n_test']:,} graphs G({s['deg']},{s['path_len']})" + (f" of {s['test_file']}" if s["test_file"] else "")
    print(f"The checkpoint of step {step} on {graphs} that it had not seen (difficult: chance is {1 / s['deg']:.1%})")
    for name, value in measured.items():
        for row in value if name == "head_accuracy" else [value]:
            if name == "margin":
                print(f"{name:<18} {value:7.3f} nats")
            else:
                print(f"{name:<18}", *(f"{share:7.2%}" for share in (row if isinstance(row, list) else [row])))


def quote(path):
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path)) if os.name == "posix" else f'"{path}"' if " " in str(path) else str(path)


def run_name(s):
    """The objective in a word or two."""
    name = s["objective"] if not s["reverse"] or s["objective"] == "reverse" else f"{s['objective']}_reverse"
    return name + "_only_difficult" * s["only_difficult"]


# ---------------------------------------------------------------------------------------------------------
# The run's folder; checkpoint.py writes what is in it


def new_folder(s):
    """Make the run's folder: --out_dir, or runs/ and a name made of what matters, with a counter where that exists.

    Returns: a Path. Raises: ValueError when it holds a run already, or cannot be made.
    """
    folder = Path(s["out_dir"] or "runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if s["out_dir"]:
            if (folder / "log.jsonl").exists():
                raise ValueError(
                    f"--out_dir {folder} holds a run already; give another folder, or go on with it by"
                    f" --resume {quote(folder)}"
                )
            return folder
        graph = f"deg_{s['deg']}_path_{s['path_len']}_nodes_{s['num_nodes']}"
        name = f"{run_name(s)}_{s['model']}_{graph}_seed_{s['seed']}"
        for count in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                folder = Path("runs", name if count == 1 else f"{name}_{count}")
                folder.mkdir()
                return folder
    except OSError as fault:
        in_the_way = isinstance(fault, (FileExistsError, NotADirectoryError))
        reason = "something that is no folder has this name" if in_the_way else fault.strerror
        raise ValueError(f"the folder {folder} cannot be made ({reason}); give another by --out_dir") from None


def write_config(folder, s):
    """Write config.json: every setting, and what else the numbers depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    facts = {"versions": versions, "machine": platform.machine(), "threads_used": torch.get_num_threads()}
    text = json.dumps(s | facts, indent=1) + "\n"
    write_whole(folder / "config.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------


def settle(given):
    """Make whole settings of the flags that were given, from the checkpoint on --resume, else from the defaults.

    Returns: s, a dict of all settings; files, as from read_files; the checkpoint, or None. Raises: ValueError, OSError,
        ImportError.
    """
    given = name_objective(given)
    if "resume" in given:
        checkpoint = load_checkpoint(given["resume"], KEPT)
        s = checkpoint["settings"]
        may_change = MAY_CHANGE_FOR_EVALUATION if given.get("eval_only") else MAY_CHANGE_ON_RESUME
        may_change += tuple(flag for flag in FILES if s[flag] and flag not in may_change)  # a file may have moved
        for name, value in given.items():
            if value != s[name] and name not in (*may_change, "resume", "eval_only"):
                raise ValueError(
                    f"--{name} {value} cannot change on --resume: this run has {s[name] if s[name] != '' else 'none'}. Leave"
                    f" it out; what may change is {', '.join(f'--{name}' for name in may_change)}"
                )
        s = s | given
        if s["eval_only"] and "test_file" in given:
            s["file_hashes"] = {}  # other graphs
            s["n_test"] = given.get("n_test", 0)  # 0: all that the file has
        files = read_files(s, {"deg": s["deg"], "path_len": s["path_len"]}, ("test_file",) if s["eval_only"] else FILES)
        if s["steps"] < checkpoint["step"]:
            raise ValueError(
                f"--steps is {s['steps']}, but the run has come to step {checkpoint['step']}; give that or more, or start a"
                " new run"
            )
    else:
        checkpoint = None
        decided = pretrained.settings_of(given) if given.get("init_from") else {}
        defaults = defaults_for((decided | given).get("model", DEFAULTS["model"]))
        s = {name: default for name, default in defaults.items() if name in KEPT} | {"file_hashes": {}} | decided | given
        files = read_files(s, given)
        s["n_test"] = s["n_test"] or 2000
        s["n_future"] = s["n_future"] or (min(4, s["path_len"]) if s["objective"] == "multi" else 1)
    if s["device"] == "auto":
        s["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    check_settings(s)
    return s, files, checkpoint


def evaluate_checkpoint(s, files, checkpoint):
    """What --eval_only does: measure the checkpoint, print what comes of it, and leave the run's folder as it is.

    Raises: ValueError, OSError.
    """
    test = test_graphs(s, files)
    trained = checkpoint["settings"] | {"train_file": s["train_file"]}  # which may have moved
    if (s["n_test"], s["test_file"]) != (trained["n_test"], trained["test_file"]):
        _, *training = prepare_graphs(trained, read_files(trained, {}))
        test = not_trained_on(test, checkpoint["step"], trained, *training)
    s["n_test"] = len(test[0])
    rank, world = this_process()
    test = [part[rank::world].to(s["device"]) for part in test]
    model = make_model(s)
    step, _, _ = restore(model, make_optimizers(model, s), checkpoint)
    with mixed_precision(s):
        measured = evaluate(model.to(s["device"]), *test, s)
    print_measurements(step, measured, s)


def mixed_precision(s):
    """The context in which a model computes: --dtype."""
    return torch.autocast(torch.device(s["device"]).type, torch.bfloat16, enabled=s["dtype"] == "bfloat16")


def run(s, files, checkpoint):
    """Train, from the start or from a checkpoint, and say what came of it. Raises: as train."""
    test, train_graphs, forbidden = prepare_graphs(s, files)
    rank, world = this_process()
    test = [part[rank::world].to(s["device"]) for part in test]  # this process's share
    if rank > 0:
        return train(s, None, test, train_graphs, forbidden, checkpoint)
    folder = Path(s["resume"]) if checkpoint else new_folder(s)
    if (peak := peak_of_schedule(s)) < 1:
        print(f"--warmup {s['warmup']} is long for --steps {s['steps']}: the learning rate rises to {peak:.0%} of --lr alone")
    with hold(folder):
        if checkpoint:
            keep_lines_before(checkpoint["step"], folder / "log.jsonl")
        try:
            record = train(s, folder, test, train_graphs, forbidden, checkpoint)
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()  # it ended before its first evaluation
    conclude(record, folder, s)


def main(argv=None):
    """The command line: train, resume or evaluate."""
    if hasattr(sys.stdout, "reconfigure"):  # where an encoding lacks a letter of a file's name, print its number
        sys.stdout.reconfigure(errors="backslashreplace")
    given = parse_command_line(argv)
    try:
        s, files, checkpoint = settle(given)
        if s["threads"]:
            torch.set_num_threads(s["threads"])
        join_processes(s)
        if s["eval_only"]:
            evaluate_checkpoint(s, files, checkpoint)
        else:
            run(s, files, checkpoint)
        leave_processes()
    except (ValueError, ImportError, FloatingPointError) as fault:
        refuse(fault)
    except OSError as fault:
        refuse(f"{fault.filename}: {fault.strerror}" if fault.filename else fault)
    except (MemoryError, RuntimeError) as fault:
        refuse(explain(fault, s))
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped at once; --resume goes on from the run's last checkpoint, if it had come to one")


def explain(fault, s):
    """One sentence for an error of PyTorch's that the user can do something about. Raises: `fault`, if it is none."""
    text = str(fault)
    if isinstance(fault, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return f"there is not enough memory on {s['device']}; give a smaller --batch_size, --n_test or model"
    if s["compile"] and type(fault).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed ({text.splitlines()[0]}); leave --compile out"
    raise fault


if __name__ == "__main__":
    main()

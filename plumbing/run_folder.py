"""What a run prints and leaves on disk: a folder with log.jsonl, config.json and ckpt.pt.

Ctrl-C leaves a checkpoint, and whatever else stops a run, its folder holds that of the last
evaluation, whole. Every file is written under a temporary name, flushed to the disk and renamed;
only the log grows line by line, and a line that a kill cut short is dropped on resuming. Loading a
checkpoint executes nothing.
"""

import contextlib
import itertools
import json
import os
import platform
import shlex
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy
import torch

import data
from plumbing import graph_files
from plumbing.processes import leave_processes, mixed_precision, share_of


class Run:
    """The log, the checkpoints and the progress line of one run, as train.py's loop needs them.

    Arguments: folder, a Path, or None in a process that writes nothing (torchrun starts several);
        s, the settings; seconds, for how long the run had been trained before it was resumed.
    """

    def __init__(self, folder, s, seconds=0.0):
        self.folder, self.s = folder, s
        self.began = time.monotonic() - seconds  # as if a resumed run had never stopped
        self.record = None  # the last line of the log
        self.last_step = None  # when the last step ended
        self.last_evaluation = None  # when the last evaluation ended, and after which step
        falls_after = min(s.steps - 1, s.steps - s.decay * s.steps + 1e-9)  # see train.schedule
        if folder and s.warmup > falls_after:
            print(f"--warmup {s.warmup} is long for --steps {s.steps}: the learning rate does not"
                  " reach --lr")

    def seconds(self):
        """The age of the run in seconds, all its parts together."""
        return time.monotonic() - self.began

    def is_due(self, step):
        """Is it time for an evaluation? Called after each step, whose end is noted for the log."""
        self.last_step = time.monotonic()
        return evaluates_at(step, self.s)

    def log(self, step, loss, measured, model, optimizers):
        """Add an evaluation to the log and save a checkpoint. loss: that of the last batch."""
        s, speed = self.s, None
        if self.last_evaluation:
            since, before = self.last_evaluation
            length = data.prefix_length(s.deg, s.path_len) + s.path_len - 1
            speed = round((step - before) * s.batch_size * length / (self.last_step - since))
        self.record = {
            "step": step,
            "seconds": round(self.seconds(), 2),
            "graphs": step * s.batch_size,
            "loss": loss,
            "chance": 1 / s.deg,
            **measured,
            "tokens_per_second": speed,  # of the training alone, since the last evaluation
        }
        if self.folder:
            write_config(self.folder, s)
            append_line(self.folder / "log.jsonl", self.record)
            self.save(step, loss, model, optimizers)
        self.last_evaluation = time.monotonic(), step

    def save(self, step, loss, model, optimizers):
        """Write ckpt.pt, all that --resume needs."""
        if self.folder:
            save_checkpoint(self.folder, step, loss, self.seconds(), model, optimizers, self.s)

    def stop(self, step, loss, model, optimizers):
        """End the program after Ctrl-C, with a checkpoint and the command that goes on from it."""
        self.save(step, loss, model, optimizers)
        if self.folder:
            script = "train.py" if self.s.idea == "train" else f"beyond/{self.s.idea}.py"
            command = f"python {script} --resume {quote(self.folder)}"
            print(f"\nStopped at step {step}. Go on with: {command}", file=sys.stderr)
        leave_processes(status=1)
        sys.exit(1)

    def show(self, step, loss):
        """Print the progress: on a terminal a line rewritten each step, else one an evaluation."""
        s, record, on_terminal = self.s, self.record, sys.stdout.isatty()
        if record is None or (step != record["step"] and not on_terminal):
            return
        left = int(self.seconds() * (s.steps - step) / step) if step else 0
        line = (
            f"step {step:>5}/{s.steps}   loss {'  -  ' if loss is None else f'{loss:.3f}'}"
            f"   exact match {record['accuracy']:6.1%}"
            f"   difficult token {record['difficult']:6.1%} (chance {record['chance']:.1%})"
            f"   {step * s.batch_size / self.seconds():5.0f} graphs/s"
            f"   {left // 60}:{left % 60:02} left"
        )
        if on_terminal:  # cover the line before, and do not wrap: that could not be rewritten
            width = shutil.get_terminal_size().columns - 1
            line = line.ljust(width) if step == s.steps else line[:width].ljust(width)
        print(line, end="\r" if on_terminal and step < s.steps else "\n", flush=True)


def evaluates_at(step, s):
    """Does a run with these settings evaluate after this step?"""
    return step % s.eval_every == 0 or step == s.steps


def conclude(record, folder, s):
    """Say in three sentences what was trained, what it reached, and where the log is."""
    kind = "Transformer" if s.model == "gpt" else "Mamba"
    seconds = record["seconds"]
    time_taken = f"{seconds / 60:.1f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    script = "plot.py" if s.idea == "train" else "beyond/draw_ideas.py"
    print(
        f"\nA {kind} of {s.n_layer} layers saw {record['graphs']:,} graphs G({s.deg},{s.path_len})"
        f" with the objective {run_name(s)!r}, in {time_taken}.\nOf {s.n_test:,} graphs that it had"
        f" not seen, it solves {record['accuracy']:.1%}, and takes the right first step in"
        f" {record['difficult']:.1%}, where a guess is right in {record['chance']:.1%}.\n"
        f"The log is {folder / 'log.jsonl'}; to see it: python {script} {quote(folder)}"
    )


def evaluate_checkpoint(s, files, checkpoint, idea, batch_of):
    """What --eval_only does: measure a checkpoint, print it, and leave the folder as it is.

    Arguments: idea, the file that has make_model and evaluate; batch_of, as train.py has it.
    Raises: ValueError, OSError.
    """
    test = graph_files.unseen_graphs(s, files, checkpoint, batch_of)
    model = idea.make_model(s)
    step, _, _ = restore(checkpoint, model)
    with mixed_precision(s):
        measured = idea.evaluate(model.to(s.device), *share_of(test, s.device), s)
    print_measurements(step, measured, s)


def print_measurements(step, measured, s):
    """Print every number of `measured`, from evaluate, a line each."""
    where = f" of {s.test_file}" if s.test_file else ""
    print(
        f"The checkpoint of step {step} on {s.n_test:,} graphs G({s.deg},{s.path_len}){where} that"
        f" it had not seen (difficult: chance is {1 / s.deg:.1%})"
    )
    for name, value in measured.items():
        numbers = value if isinstance(value, list) else [value]
        form = {"margin": "{:7.3f} nats", "decoding_order": "{:7.2f}"}.get(name, "{:7.2%}")
        print(f"{name:<18}", *map(form.format, numbers))


def run_name(s):
    """The objective in a word or two, or the idea of beyond/."""
    name = s.objective if s.idea == "train" else s.idea
    name += "_reverse" * (s.reverse and s.objective != "reverse")
    return name + "_only_difficult" * s.only_difficult


def quote(path):
    """A path as it can be pasted into a shell, as one word that is no flag."""
    path = f"./{path}" if str(path).startswith("-") else str(path)
    if os.name == "posix":
        return shlex.quote(path)
    return f'"{path}"' if " " in path else path


# ------------------------------------------------------------------------------------------------
# The folder


def new_folder(s):
    """Make the run's folder: --out_dir, or one in runs/ named after what matters, with a counter.

    Returns: a Path. Raises: ValueError when it holds a run already, or cannot be made.
    """
    folder = Path(s.out_dir or "runs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if s.out_dir:
            if (folder / "ckpt.pt").exists():
                raise ValueError(
                    f"--out_dir {folder} holds a run already; give another folder, or go on with it"
                    f" by --resume {quote(folder)}"
                )
            if (folder / "log.jsonl").exists() or (folder / "config.json").exists():
                raise ValueError(
                    f"--out_dir {folder} holds a log.jsonl or a config.json, which would be lost;"
                    " give another folder"
                )
            return folder
        graph = f"deg_{s.deg}_path_{s.path_len}_nodes_{s.num_nodes}"
        name = f"{run_name(s)}_{s.model}_{graph}_seed_{s.seed}"
        for count in itertools.count(1):
            with contextlib.suppress(FileExistsError):
                folder = Path("runs", name if count == 1 else f"{name}_{count}")
                folder.mkdir()
                return folder
    except OSError as fault:
        in_the_way = isinstance(fault, (FileExistsError, NotADirectoryError))
        reason = "something that is no folder has this name" if in_the_way else fault.strerror
        raise ValueError(
            f"the folder {folder} cannot be made ({reason}); give another by --out_dir"
        ) from None


@contextlib.contextmanager
def hold(folder):
    """Hold a run's folder while the body runs, so that no second process writes into it.

    The operating system releases it when the process ends, however it ends. (Windows has no such
    lock.) A folder that is still empty then, since the run came to no evaluation, is removed.
    Raises: ValueError when another process holds the folder.
    """
    handle = None
    with contextlib.suppress(ImportError, OSError):  # some systems, and some disks, have no locks
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ValueError(f"another process is writing to {folder}; wait for its end") from None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        with contextlib.suppress(OSError):
            folder.rmdir()  # which removes empty folders only


# ------------------------------------------------------------------------------------------------
# Files


def write_whole(path, write):
    """Let write(temporary_path) write a file, flush it, and rename it to `path`: all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as fault:  # torch.save raises RuntimeError when the disk is full
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({str(fault).splitlines()[0]});"
            " what was there before is whole"
        ) from None


def write_config(folder, s):
    """Write config.json: every setting, and what else the numbers depend on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["numpy"] = numpy.__version__
    facts = {"versions": versions, "machine": platform.machine()}
    facts["threads_used"] = torch.get_num_threads()
    text = json.dumps(vars(s) | facts, indent=1) + "\n"
    write_whole(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))


def append_line(path, record):
    """Add one JSON line to the log and flush it to the disk."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise OSError(
            f"{path} could not be written ({fault.strerror}); the lines before are whole"
        ) from None


def go_back_to(checkpoint, folder, s):
    """Drop the log's lines that the resumed run, with the settings s, writes again.

    Raises: ValueError when another process has written a later checkpoint in the meantime.
    """
    if (folder / "ckpt.pt").stat().st_mtime_ns != checkpoint["written"]:
        raise ValueError(f"another process has just written to {folder}; resume it again")
    path, step, kept = folder / "log.jsonl", checkpoint["step"], []
    first_dropped = step if evaluates_at(step, s) else step + 1
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            if json.loads(line)["step"] < first_dropped:
                kept.append(line)
    write_whole(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


# ------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(folder, step, loss, seconds, model, optimizers, s):
    """Write ckpt.pt, all that --resume needs."""
    checkpoint = {
        "settings": vars(s),
        "step": step,
        "loss": loss,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }

    def write(temporary):
        with open(temporary, "wb") as file:  # a full disk then has its own name in the message
            torch.save(checkpoint, file)

    write_whole(folder / "ckpt.pt", write)


def load_checkpoint(folder, types):
    """Read ckpt.pt, executing nothing.

    Arguments: types, {name: type} of the settings that it must have. Returns: a dict, as saved.
    Raises: ValueError when it is missing, damaged or of another version; OSError when it may not
        be read.
    """
    path = Path(folder, "ckpt.pt")
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; --resume needs the folder of a run that has saved a checkpoint"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # torch.load does not compare checksums
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        settings, step, seconds = (checkpoint[key] for key in ("settings", "step", "seconds"))
        numbers = isinstance(step, int) and isinstance(seconds, float)
        if whole and numbers and {name: type(settings[name]) for name in settings} == types:
            return checkpoint | {"written": path.stat().st_mtime_ns}
    except PermissionError:
        raise
    except Exception:  # a damaged file can make torch.load raise nearly anything
        pass
    raise ValueError(
        f"{path} is damaged or of another version of train.py, and cannot be resumed; start the run"
        " again"
    )


def restore(checkpoint, model, optimizers=()):
    """Load a checkpoint's numbers into the model and, to go on training, into the optimisers.

    Returns: step, loss, seconds. Raises: ValueError when they do not fit.
    """
    try:
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=bool(optimizers)):
            optimizer.load_state_dict(state)
        return checkpoint["step"], checkpoint["loss"], checkpoint["seconds"]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as fault:
        first_line = str(fault).splitlines()[0]
        raise ValueError(
            f"the checkpoint does not fit its own settings ({first_line}); start the run again"
        ) from None

"""What a run leaves on disk, so that no work is lost: whatever stops it, and whenever, there is a whole checkpoint.

Every file is written under another name, seen to the disk and moved into place; only the log grows line by line, and
a line that a kill cut short is dropped on resuming. Checkpoints are read without executing anything in them.
"""

import contextlib
import json
import os
import zipfile
from pathlib import Path

import torch


def write_whole(path, write):
    """Let write(temporary_path) write a file, see it to the disk, and move it to `path`: all of it or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as fault:  # torch.save raises RuntimeError when the disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({str(fault).splitlines()[0]}); what was there before is whole"
        ) from None


@contextlib.contextmanager
def hold(folder):
    """Hold a run's folder while the body runs, so that no second process writes into it.

    The operating system lets go of it when the process ends, however that happens. (Windows has no such lock.)
    Raises: ValueError when another process holds the folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is writing to {folder}; wait for its end") from None
        yield
    finally:
        os.close(handle)


def append_line(path, record):
    """Add one JSON line to the log and see it to the disk."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise OSError(f"{path} could not be written ({fault.strerror}); the lines before are whole") from None


def keep_lines_before(step, path):
    """Drop the log's lines from `step` on, which a resumed run writes again, and one that a kill cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    write_whole(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def save_checkpoint(folder, step, loss, seconds, model, optimizers, s):
    """Write ckpt.pt, all that --resume needs."""
    checkpoint = {
        "settings": s,
        "step": step,
        "loss": loss,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    write_whole(folder / "ckpt.pt", lambda temporary: torch.save(checkpoint, temporary))


def load_checkpoint(folder, names):
    """Read ckpt.pt, executing nothing.

    Arguments: names, of the settings that it must have. Returns: a dict, as saved. Raises: ValueError when it is
        missing, damaged or of another version.
    """
    path = Path(folder, "ckpt.pt")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --resume needs the folder of a run that has saved a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # torch.load itself does not look whether the numbers are those written
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if whole and checkpoint["settings"].keys() == names:
            return checkpoint
    except Exception:  # a damaged file can make torch.load raise nearly anything
        pass
    raise ValueError(f"{path} is damaged or of another version of train.py, and cannot be resumed; start the run again")


def restore(model, optimizers, checkpoint):
    """Put a checkpoint's numbers in place. Returns: step, loss, seconds. Raises: ValueError when they do not fit."""
    try:
        model.load_state_dict(checkpoint["model"])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return checkpoint["step"], checkpoint["loss"], checkpoint["seconds"]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as fault:
        first_line = str(fault).splitlines()[0]
        raise ValueError(f"the checkpoint does not fit its own settings ({first_line}); start the run again") from None

"""Where a run computes: one process or several, on which device, in which precision; and Ctrl-C.

torchrun --nproc_per_node=2 train.py … starts the program twice, with RANK and WORLD_SIZE in the
environment. All processes draw the same batch, each learns from its share, and all take the same
step. (PyTorch's DistributedDataParallel would average gradients during the backward pass; but
add_gradients in train.py runs backward several times a step.)
"""

import os
import signal
import sys
import threading

import torch
import torch.distributed as dist


def join_processes(s):
    """Under torchrun, meet the other processes; only the first one prints. Raises: ValueError."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return
    if s.device not in ("cpu", "cuda"):
        raise ValueError(
            f"--device {s.device} does not go with {world} processes; give cpu or cuda"
        )
    if s.batch_size % world or s.n_test < world:
        raise ValueError(
            f"--batch_size {s.batch_size} and --n_test {s.n_test} cannot be shared out over {world}"
            f" processes; give a multiple of {world} and at least {world}"
        )
    if s.device == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:  # every process finds this, and none waits for the others
            raise ValueError(
                f"{here} processes need a GPU each, but this machine has {gpus}; start fewer"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if s.device == "cuda" else "gloo")
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")


def leave_processes(status=0):
    """Under torchrun, part from the other processes, all at once, and end this one."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        # gloo's threads may still hold tensors, and abort if Python frees them on its way out.
        os._exit(status)


def this_process():
    """This process's number, and how many there are; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_of(tensors, device):
    """This process's share of some tensors, all (B, …), on the device: a list."""
    rank, world = this_process()
    return [tensor[rank::world].to(device) for tensor in tensors]


def average_gradients(model, loss, stop):
    """Average the gradients over all processes, in place.

    Returns: the average loss, and whether any process wants to stop.
    """
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


def catch_ctrl_c():
    """Make the first Ctrl-C set the event that is returned; a second one stops the program."""
    interrupted = threading.Event()

    def on_ctrl_c(number, frame):
        interrupted.set()
        if not dist.is_initialized():  # torchrun sends its processes a second one
            signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_ctrl_c)
    return interrupted


def mixed_precision(s):
    """The context in which a model computes, as --dtype says."""
    enabled = s.dtype == "bfloat16"
    return torch.autocast(torch.device(s.device).type, torch.bfloat16, enabled=enabled)


def check_device(device):
    """Raise a ValueError when the device is not available."""
    try:
        torch.zeros(1, device=device).item()  # the device "meta" can hold a number, not return it
    except (RuntimeError, AssertionError, ImportError, AttributeError):
        raise ValueError(f"--device {device} is not available here; give --device cpu") from None

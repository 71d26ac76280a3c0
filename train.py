"""Train a Transformer or a Mamba to find the path, with one of four objectives.

    python train.py                  next-token prediction: the first step stays at chance
    python train.py --reverse        the same on reversed paths: solved
    python train.py --multi          several future tokens from each position: solved
    python train.py --teacherless    all tokens at once, none of them revealed: solved
    python train.py --help           everything else

A run leaves a folder with log.jsonl (a line for each evaluation), config.json and ckpt.pt. In this
file: what a step needs, the loss, the loop and main. Everywhere, s holds settings.py's settings.
"""

from plumbing import command_line

if __name__ == "__main__":
    command_line.help_and_stop(__doc__)  # if asked for, before PyTorch, which loads for seconds

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import model_mamba
from evaluate import evaluate
from model_gpt import GPT, GPTConfig
from model_mamba import Mamba, MambaConfig
from muon import Muon
from plumbing import flags, graph_files, pretrained, processes, run_folder

# ------------------------------------------------------------------------------------------------
# What a step needs: its graphs, the model, the optimisers and their learning rate


def batch_of(step, s, fixed, forbidden):
    """The graphs of one step: prefix (B, P) and path (B, l), int64.

    They depend on the seed and the step alone, so a resumed run need not remember any.
    Arguments: fixed, the training set's prefix (M, P) and path (M, l), or None for fresh graphs;
        forbidden, the keys of the test graphs, (K,) int64.
    """
    B, shape = s.batch_size, (s.deg, s.path_len, s.num_nodes)
    if fixed is None:
        generator = graph_files.generator_for(s.seed, graph_files.FRESH, step)
        return data.sample_new_graphs(B, *shape, generator, forbidden)
    prefix, path = fixed
    epoch, i = divmod(step, len(path) // B)  # an epoch's rest of less than a batch is skipped
    rows = graph_files.epoch_order(len(path), s.seed, epoch)[i * B : (i + 1) * B]
    return prefix[rows], path[rows]


def make_model(s, more_tokens=0):
    """The model that the settings describe, its initial weights drawn from the seed.

    Arguments: more_tokens, room for longer sequences than the objectives have, for an idea.
    """
    torch.manual_seed(s.seed)
    V, P = data.vocab_size(s.num_nodes), data.prefix_length(s.deg, s.path_len)
    both = dict(vocab_size=V, n_layer=s.n_layer, n_embd=s.n_embd, n_future=s.n_future)
    both |= dict(prefix_len=0 if s.causal else P, mimetic=not s.no_mimetic)
    if s.model == "mamba":
        d_conv = 4 if s.no_mimetic else 2
        return Mamba(MambaConfig(**both, d_state=s.d_state, d_conv=d_conv, scan=s.scan))
    block_size = P + s.path_len - 1 + more_tokens
    return GPT(GPTConfig(**both, block_size=block_size, n_head=s.n_head, canon=not s.no_canon))


def make_optimizers(model, s):
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for all: a list.

    A matrix is every parameter of two dimensions but A_log; so Canon's (C, 4) is one. Some hold
    several matrices, and Muon takes these `pieces` one by one. Only matrices have weight decay. The
    loop schedules each `full_lr`.
    """
    rest, pieces = [], {1: [], 2: [], 3: []}  # matrices by how many pieces they hold
    for name, p in model.named_parameters():
        in_block = {"h", "layers", "future"} & set(name.split("."))
        if not in_block or p.ndim != 2 or name.endswith("A_log"):
            rest.append(p)
        else:  # c_attn stacks the matrices of queries, keys and values, in_proj those of x and z
            n = 3 if "c_attn" in name else 2 if "in_proj" in name else 1
            pieces[n].append(p)
    matrices = [
        {"params": params, "pieces": n, "weight_decay": s.weight_decay}
        for n, params in pieces.items()
        if params
    ]
    adamws = [{"params": rest}, *(matrices if s.optimizer == "adamw" else [])]
    optimizers = [torch.optim.AdamW(adamws, s.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if s.optimizer == "muon":
        optimizers.append(Muon(matrices, lr=10 * s.lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def schedule(step, s):
    """The share of the full learning rate: it rises in the warm-up, and falls in the last steps."""
    rise, fall = (step + 1) / (s.warmup + 1), (s.steps - step) / max(1, s.decay * s.steps)
    return min(1.0, rise, fall)


# ------------------------------------------------------------------------------------------------
# The loss

IN_CACHE = 2**17  # numbers, 512 kB: a core's share of a layer's output fits in its cache


def add_gradients(model, inputs, targets):
    """Run the model forward and backward, for any objective; add to the parameters' gradients.

    The loss is the cross-entropy: for each output head the mean over its targets, then the sum over
    the heads (Gloeckle et al. 2024, section 2). The heads take turns, so that only one head's
    logits exist at a time: each head's backward pass stops at the trunk's output, where gradients
    add up; one backward pass then takes their sum through the trunk. On a CPU the batch goes
    through in parts that fit in the caches, which takes less memory, and not more time. The means
    are those of the whole batch all the same.

    Arguments: inputs (B, T) and targets (B, l, K), int64; data.IGNORE is no target.
    Returns: the loss, a float; not a number if a head has no target in some part.
    """
    size, room = inputs.numel() * model.config.n_embd, IN_CACHE * torch.get_num_threads()
    parts = math.ceil(size / room) if inputs.device.type == "cpu" else 1
    counts = (targets != data.IGNORE).sum(dim=(0, 1))  # (K,): each head's targets
    total = 0.0
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts)):
        trunk = model.trunk(x)  # (b, T, C); Mamba's is longer, by its first reading of the prefix
        cut = trunk.detach().requires_grad_()
        for k in range(y.shape[2]):
            logits = model.head(cut, k, num_outputs=y.shape[1])  # (b, l, V)
            labels = y[:, :, k].flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=data.IGNORE)
            loss = loss * ((labels != data.IGNORE).sum().to(loss.dtype) / counts[k])  # its share
            with torch.autocast(x.device.type, enabled=False):  # forward has settled the types
                loss.backward()
            total += loss.item()
        with torch.autocast(x.device.type, enabled=False):
            trunk.backward(cut.grad)
    return total


def learn(model, prefix, path, s, step):
    """Add the gradients of one batch. How it is laid out, by data.layout, is the whole experiment.

    Arguments: prefix (B, P), path (B, l), int64, on the model's device. Returns: the loss, a float.
    """
    inputs, targets = data.layout(s.objective, prefix, path, s.num_nodes, s.reverse, s.n_future)
    if s.only_difficult:
        others = torch.arange(s.path_len) != (s.path_len - 2 if s.reverse else 1)
        targets = targets.masked_fill(others[:, None].to(targets.device), data.IGNORE)
    return add_gradients(model, inputs, targets)


# ------------------------------------------------------------------------------------------------
# The loop


def train(s, folder, test, fixed, forbidden, idea, checkpoint=None):
    """Train to the last step, with an evaluation every eval_every steps.

    Arguments: folder, a Path, or None in a process that writes nothing; test, prefix (M, P) and
        path (M, l); fixed and forbidden, as in batch_of; idea, the file that has make_model, learn
        and evaluate: this one, or one of beyond/; checkpoint, a dict to go on from.
    Returns: the log's last line, a dict.
    Raises: FloatingPointError when the loss is no longer finite; ValueError, OSError; SystemExit
        after Ctrl-C, which ends training after the current step, with a checkpoint.
    """
    model = idea.make_model(s).to(s.device)
    optimizers = make_optimizers(model, s)
    step, loss, seconds = 0, None, 0.0
    if checkpoint:
        step, loss, seconds = run_folder.restore(checkpoint, model, optimizers)
    elif s.init_from:
        pretrained.start_from(model, s.init_from)
    if s.compile:  # the blocks, but for the scan, whose loop would be unrolled
        torch.compile(torch.neg)(torch.ones(1, device=s.device))  # if it cannot work, fail now
        model_mamba.selective_scan = torch.compiler.disable(model_mamba.selective_scan)
        for block in [m for m in model.modules() if type(m).__name__ == "Block"]:
            block.compile()
    precision, interrupted = processes.mixed_precision(s), processes.catch_ctrl_c()
    run = run_folder.Run(folder, s, seconds)
    while True:
        if run.is_due(step):
            with precision, torch.compiler.set_stance("force_eager"):  # else each shape is compiled
                measured = idea.evaluate(model, *test, s)
            run.log(step, loss, measured, model, optimizers)
        run.show(step, loss)
        if step == s.steps:
            return run.record

        batch = batch_of(step, s, fixed, forbidden)
        prefix, path = processes.share_of(batch, s.device)  # all of it, but under torchrun
        with precision:
            loss = idea.learn(model, prefix, path, s, step)
        loss, stop = processes.average_gradients(model, loss, interrupted.is_set())
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}, with --lr {s.lr}; the last checkpoint is kept,"
                " but resuming would diverge again: start anew with a smaller learning rate"
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * schedule(step, s)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if stop and step < s.steps:
            run.stop(step, loss, model, optimizers)


# ------------------------------------------------------------------------------------------------
# Main


def train_from(s, files, idea, checkpoint):
    """Train, from the start or from a checkpoint, and say what came of it. Raises: as train."""
    test = graph_files.test_graphs(s, files)
    fixed, forbidden = graph_files.training_graphs(s, files, test)
    test = processes.share_of(test, s.device)
    if processes.this_process()[0] > 0:  # only the first process writes
        return train(s, None, test, fixed, forbidden, idea, checkpoint)
    folder = Path(s.resume) if checkpoint else run_folder.new_folder(s)
    with run_folder.hold(folder):
        if checkpoint:
            run_folder.go_back_to(checkpoint, folder, s)
        record = train(s, folder, test, fixed, forbidden, idea, checkpoint)
    run_folder.conclude(record, folder, s)


def main(argv=None, idea=sys.modules[__name__]):
    """The command line. Bad input: one sentence and exit status 2. Arguments: idea, as in train."""
    command_line.make_output_safe()
    given = command_line.parse(argv, idea.__doc__)
    with flags.one_sentence_for_faults(given):
        s, files, checkpoint = flags.settle(given, Path(idea.__file__).stem)
        torch.set_num_threads(s.threads or torch.get_num_threads())
        processes.join_processes(s)
        if s.eval_only:
            run_folder.evaluate_checkpoint(s, files, checkpoint, idea, batch_of)
        else:
            train_from(s, files, idea, checkpoint)
        processes.leave_processes()


if __name__ == "__main__":
    main()

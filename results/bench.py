"""Speed and memory against what a user would pick instead, and against what the machine allows.

    python results/bench.py                  everything: a table of ratios, and a line for each in results/bench.jsonl
    python results/bench.py gpt              one part: data, gpt, mamba, triton, multi, decode, muon, size or start
    python results/bench.py multi --run DIR  drafts of the model that `python train.py --multi` left in DIR
    python results/bench.py --help           everything else

A ratio above 1 is in our favour; `compare` is how it is measured. Within a row, sizes, optimisers and the positions of
the loss are the same on both sides; against another GPT, ours goes without Canon and QK-norm. Peers that
are not installed are skipped by name (requirements-dev.txt has them). In order: the protocol, the peers, the parts, main.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

import data  # noqa: E402
import evaluate  # noqa: E402
import train  # noqa: E402
from beyond.drafts import decode_by_drafts  # noqa: E402
from model_gpt import GPT, GPTConfig  # noqa: E402
from model_mamba import Mamba, MambaConfig, selective_scan  # noqa: E402
from plumbing import flags as command_line  # noqa: E402
from plumbing.graph_files import test_graphs  # noqa: E402
from plumbing.run_folder import restore, write_whole  # noqa: E402
TINY = dict(n_layer=2, n_head=2, n_embd=16, batch_size=4)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# ---------------------------------------------------------------------------------------------------------
# The protocol


def seconds(function):
    """How long one call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def megabytes(call):
    """Peak memory of a call of a function of this file, given as text, in a fresh process beyond what imports take."""
    program = f"from results.bench import *; torch.set_num_threads({torch.get_num_threads()}); before = most_memory_yet()"
    return int(python("-c", f"{program}; {call}; print(most_memory_yet() - before)")) / 1024


def most_memory_yet():
    """The most memory that this process has ever held, in kB; Linux keeps account of it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def compare(ours, peer, runs=5, measure=seconds):
    """Measure two things against each other: each once to warm up, then in turn, `runs` times.

    Whatever slows the machine down for a while thus slows both, and each pair of neighbours gives one ratio. There are
    fewer runs where all would take over two minutes; what takes longer than that is measured once, the first time.
    Returns: a dict of both medians, the median of the ratios, and runs.
    """
    began = time.perf_counter()
    first = measure(ours), measure(peer)
    runs = min(runs, int(120 / (time.perf_counter() - began)))
    pairs = [(measure(ours), measure(peer)) for _ in range(runs)] or [first]
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    own, theirs = (statistics.median(side) for side in zip(*pairs))
    return {f"ours_{measure.__name__}": own, f"peer_{measure.__name__}": theirs, "ratio": ratio, "runs": len(pairs)}


def python(*words):
    """Run Python in a process of its own. Returns: what it prints."""
    return subprocess.run([sys.executable, *words], cwd=HOME, check=True, capture_output=True, text=True).stdout


def installed(package):
    """Whether a peer is there; if not, say so."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed, so the comparison with it is left out")
    return found


# ---------------------------------------------------------------------------------------------------------
# The peers


def graphs_one_by_one(batch_size, deg, path_len, num_nodes, draw_nodes):
    """The plain loop of research code: draw, write as text, tokenise. Returns: as data.layout of "next"."""
    vocabulary = {str(i): i for i in range(num_nodes)} | {mark: num_nodes + i for i, mark in enumerate("|=/$")}
    inputs, targets = [], []
    for _ in range(batch_size):
        nodes = draw_nodes(num_nodes, data.nodes_needed(deg, path_len))
        others = iter(nodes[1:])
        arms = [[nodes[0], *itertools.islice(others, path_len - 1)] for _ in range(deg)]
        edges = [edge for arm in arms for edge in zip(arm, arm[1:])]
        random.shuffle(edges)
        path = random.choice(arms)
        text = "|".join(f"{a},{b}" for a, b in edges) + f"/{path[0]},{path[-1]}=" + ",".join(map(str, path))
        tokens = [vocabulary[word] for word in re.findall("[0-9]+|[|=/]", text)]
        inputs.append(torch.tensor(tokens[:-1]))
        targets.append(torch.tensor(tokens[-path_len:]))
    return torch.stack(inputs), torch.stack(targets)[:, :, None]


def nodes_at_once(num_nodes, count):
    """All nodes of a graph by one call, as a careful author would draw them."""
    return random.sample(range(num_nodes), count)


def nodes_one_by_one(num_nodes, count):
    """A call for each node, and again where it was taken already, as the paper's released code draws them."""
    nodes = []
    while len(nodes) < count:
        node = numpy.random.randint(0, num_nodes, 1)[0]
        if node not in nodes:
            nodes.append(node)
    return nodes


class PlainBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = nn.ModuleDict(dict(c_attn=nn.Linear(C, 3 * C), c_proj=nn.Linear(C, C)))
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(C, 4 * C), c_proj=nn.Linear(4 * C, C)))

    def forward(self, x):
        B, T, C = x.shape
        parts = self.attn.c_attn(self.ln_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """A GPT as nanoGPT trains it, with logits at all positions. The weights of model_gpt.GPT fit it."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.Sequential(*(PlainBlock(config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        """tokens (B, T), int64 -> logits (B, T, V)."""
        return self.lm_head(self.ln_f(self.h(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1])))))


def hugging_face_gpt(c):
    """GPT2LMHeadModel of the same size as the GPTConfig `c`, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    none = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(GPT2Config(**sizes, **none))


def mamba_named(name, V, C, layers, N):
    """One implementation of Mamba. Returns: the model, and a function from tokens (B, T) to logits (B, T, V)."""
    if name.startswith("mambapy"):
        from mambapy import mamba

        trunk = mamba.Mamba(mamba.MambaConfig(d_model=C, n_layers=layers, d_state=N, pscan=name == "mambapy pscan"))
        model = nn.Sequential(nn.Embedding(V, C), trunk, nn.RMSNorm(C, eps=1e-5), nn.Linear(C, V, bias=False))
        model[3].weight = model[0].weight
    elif name == "transformers":
        from transformers import MambaConfig as TheirConfig, MambaForCausalLM

        sizes = dict(vocab_size=V, hidden_size=C, num_hidden_layers=layers, state_size=N)
        model = MambaForCausalLM(TheirConfig(**sizes, use_cache=False))
        return model, lambda tokens: model(tokens).logits
    else:
        scan = "reference" if name == "plain recurrence" else "fast"
        model = Mamba(MambaConfig(V, layers, C, N, d_conv=4, mimetic=False, scan=scan))
    return model, model


def plain_gradients(logits_of, inputs, targets):
    """Forward and backward in the usual way; logits_of(inputs) are those of all positions, or of the last."""
    logits = logits_of(inputs)
    labels = F.pad(targets[:, :, 0], (logits.shape[1] - targets.shape[1], 0), value=data.IGNORE)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=data.IGNORE)
    loss.backward()
    return loss.item()


def pytorch_optimizers(model, s):
    """PyTorch's own optimisers, with what train.make_optimizers gives ours. Returns: a list."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if s.optimizer == "muon" and "h." in name and p.ndim == 2 else rest).append(p)
    optimizers = [torch.optim.AdamW(rest, s.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    return optimizers + ([torch.optim.Muon(matrices, 10 * s.lr, weight_decay=0.0)] if matrices else [])


def decode_without_cache(model, prefix, length):
    """Greedy decoding that reads everything again for each token: (B, length)."""
    tokens = prefix
    for _ in range(length):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=2)], dim=1)
    return tokens[:, -length:]


# ---------------------------------------------------------------------------------------------------------
# The parts. Each yields rows: dicts of setting, peer, what compare returns, and a note.


def settings(args, **given):
    """train.py's settings, with some flags given; --quick shrinks the model."""
    return command_line.settle({"device": "cpu"} | given | (TINY if args.quick else {}), train.SETTINGS)[0]


def draw(count, s):
    """Random graphs of the task that the settings describe: prefix (count, P) and path (count, l)."""
    return data.sample_graphs(count, s.deg, s.path_len, s.num_nodes, torch.Generator().manual_seed(1))


def training_step(add_gradients, optimizers):
    """A function that takes one whole step: forward, backward, optimisers."""
    def step():
        add_gradients()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return step


def best_of_ten(function):
    """What the machine can do at best: the least seconds of ten calls."""
    return min(seconds(function) for _ in range(10))


def bench_data(args):
    shape, batch = (2, 5, 50), 8 if args.quick else 1024
    generator = torch.Generator().manual_seed(1)
    forbidden = data.graph_keys(data.sample_graphs(2000, *shape, generator)[0], 50).unique()
    ours = lambda: data.layout("next", *data.sample_new_graphs(batch, *shape, generator, forbidden), 50)
    peers = {"a loop": nodes_at_once, "a loop, nodes drawn as in the paper's code": nodes_one_by_one}
    for peer, draw_nodes in peers.items():
        times = compare(ours, lambda: graphs_one_by_one(batch, *shape, draw_nodes), 4 * args.runs)
        yield dict(setting=f"G(2,5), 50 labels, batch {batch}, tokens ready", peer=peer, **times)


def bench_gpt(args):
    n = 256 if args.quick else 2048
    limit = 2 * n**3 / best_of_ten(lambda a=torch.rand(n, n): a @ a)  # flop/s of float32 matrix products
    adamw, with_transformers = dict(optimizer="adamw"), installed("transformers")
    for given in ({}, adamw, adamw | dict(path_len=5, n_layer=6, n_embd=384, n_head=6, batch_size=64)):
        s = settings(args, no_canon=True, no_qk_norm=True, **given)
        l, model = s.path_len, train.make_model(s)
        batch = data.layout("next", *draw(s.batch_size, s), s.num_nodes)
        with FlopCounterMode(display=False) as counter:  # on a CPU it cannot see into attention
            train.add_gradients(model, *batch)
        flops = counter.get_total_flops()
        ours = training_step(lambda: train.add_gradients(model, *batch), train.make_optimizers(model, s))
        plain = PlainGPT(model.config)
        peers = {"plain GPT, all logits": (plain, plain)}
        if with_transformers:
            theirs = hugging_face_gpt(model.config)
            peers["transformers"] = theirs, lambda tokens: theirs(tokens, logits_to_keep=l, use_cache=False).logits
        for name, (peer, logits_of) in peers.items():
            step = training_step(lambda: plain_gradients(logits_of, *batch), pytorch_optimizers(peer, s))
            times = compare(ours, step, args.runs)
            note = f"{flops / times['ours_seconds'] / limit:.0%} of the sgemm limit, {limit / 1e9:,.0f} Gflop/s"
            setting = f"step, G({s.deg},{l}), {s.n_layer} x {s.n_embd}, batch {s.batch_size}"
            limits = dict(flops=flops, sgemm_flops_per_second=limit)
            yield dict(setting=f"{setting}, {s.optimizer}", peer=name, **times, note=note, **limits)


def bench_mamba(args):
    x = torch.rand(2**19)  # as many numbers as in a block of FastScan
    exp_rate = len(x) / best_of_ten(lambda out=torch.empty_like(x): torch.exp2(x, out=out))
    bandwidth = copy_bandwidth(2**18 if args.quick else 2**26)
    V, C, layers, N = (54, 16, 2, 4) if args.quick else (54, 128, 4, 16)
    peers = ["plain recurrence"] + ["mambapy pscan", "mambapy loop"] * installed("mambapy")
    peers += ["transformers"] * installed("transformers")
    for batch, T in ((2, 8), (1, 16)) if args.quick else ((128, 36), (16, 512)):
        tokens = torch.randint(V, (2, batch, T))
        inputs, targets = tokens[0], tokens[1, :, :, None]  # a loss at every position

        def step_of(name):
            model, logits_of = mamba_named(name, V, C, layers, N)
            gradients = train.add_gradients if name == "ours" else plain_gradients
            optimizers = pytorch_optimizers(model, SimpleNamespace(optimizer="adamw", lr=1e-3))
            return training_step(lambda: gradients(logits_of, inputs, targets), optimizers)

        ours = step_of("ours")
        for name in peers:
            times = compare(ours, step_of(name), args.runs)
            exps = 2 * layers * batch * T * 2 * C * N  # once forward, once again backward
            moved = layers * 8 * batch * T * 2 * C * 4  # x and dt in and y out; x, dt, dy in again and dx, ddt out
            own = times["ours_seconds"]
            note = f"exp alone is {exps / exp_rate / own:.0%} of ours, the scan's bytes {moved / bandwidth / own:.1%}"
            setting = f"step, {layers} x {C}, N {N}, batch {batch}, T {T}, adamw"
            limits = dict(exps=exps, exps_per_second=exp_rate, scan_bytes=moved, bytes_per_second=bandwidth)
            yield dict(setting=setting, peer=name, **times, note=note, **limits)

    sizes = "2, 8, 16, 4" if args.quick else "64, 64, 256, 16"
    if sys.platform == "linux":
        memory = compare(f"gradients_of_scan('fast', {sizes})", f"gradients_of_scan('reference', {sizes})",
                         min(args.runs, 3), megabytes)
        yield dict(setting=f"peak memory of the scan, (B, T, E, N) = ({sizes})", peer="plain recurrence", **memory)


def copy_bandwidth(count, device="cpu"):
    """What the memory can do at best, in bytes a second, read and written: a large copy of `count` numbers."""
    source = torch.rand(count, device=device)
    return 2 * source.nbytes / best_of_ten(lambda out=torch.empty_like(source): finish(out.copy_(source)))


def finish(_):
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scan_inputs(batch, T, E, N, device="cpu"):
    """Random x, dt, A, B, C, D for the selective scan, in its order. Returns: a list of leaves that want gradients."""
    shapes = (batch, T, E), (batch, T, E), (E, N), (batch, T, N), (batch, T, N), (E,)
    x, dt, A, B, C, D = (torch.rand(shape, device=device) for shape in shapes)
    return [v.requires_grad_() for v in (x, dt, -A, B, C, D)]


def gradients_of_scan(method, *sizes):
    """One selective scan, forward and backward, on random numbers."""
    selective_scan(*scan_inputs(*sizes), method=method).sum().backward()


def bench_triton(args):
    """The fused kernel on a GPU, forward and backward, beside the other scans and the memory's bandwidth."""
    if not (torch.cuda.is_available() and installed("triton")):
        print("the fused scan is timed on a GPU, with triton; results/README.md has what its bytes let expect")
        return
    bandwidth = copy_bandwidth(2**28, "cuda")
    for batch, T, E, N in ((256, 36, 256, 16), (16, 512, 256, 16), (8, 2048, 2048, 16)):
        inputs = scan_inputs(batch, T, E, N, "cuda")
        peers = {name: lambda name=name: selective_scan(*inputs, method=name) for name in ("triton", "reference", "fast")}
        if installed("mamba_ssm"):
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

            turned = [v if v.ndim < 3 else v.detach().mT.contiguous().requires_grad_() for v in inputs]  # (B, E, T)
            peers["mamba_ssm"] = lambda: selective_scan_fn(*turned)
        ours = peers.pop("triton")
        moved = 16 * batch * T * E * 4  # as counted in scan_triton.selective_scan_triton
        for name, scan in peers.items():
            times = compare(*(lambda scan=scan: finish(scan().sum().backward()) for scan in (ours, scan)), args.runs)
            note = f"{moved / times['ours_seconds'] / bandwidth:.0%} of the bandwidth, {bandwidth / 1e9:,.0f} GB/s"
            setting = f"scan on a GPU, (B, T, E, N) = ({batch}, {T}, {E}, {N})"
            yield dict(setting=setting, peer=name, **times, note=note, bytes=moved, bytes_per_second=bandwidth)


def bench_multi(args):
    B, V = (8, 1000) if args.quick else (256, 32_000)
    ours, one = (f"gradients_of_heads({n}, {B}, {V})" for n in (4, 1))
    peers = {"1 head": one, "4 heads, losses summed": ours.replace(")", ", naive=True)")}
    for peer, call in peers.items() if sys.platform == "linux" else ():
        memory = compare(ours, call, min(args.runs, 3), megabytes)
        note = f"{1 / memory['ratio'] - 1:+.0%} memory"
        yield dict(setting=f"peak memory, 4 heads, {V} tokens, batch {B}", peer=peer, **memory, note=note)

    model, prefix, s = args.multi
    graphs, l = prefix[: 2 if args.quick else 50].split(1), s.path_len
    plain = torch.no_grad()(lambda: [evaluate.decode(model, graph, l, "multi", s.num_nodes) for graph in graphs])
    times = compare(lambda: [decode_by_drafts(model, graph, l) for graph in graphs], plain, args.runs)
    tokens = l * len(graphs) / sum(decode_by_drafts(model, graph, l)[1] for graph in graphs)
    note = f"{tokens:.2f} tokens a pass" + ", but random drafts are as good as never kept" * (not args.run)
    setting = f"drafts, {'trained' if args.run else 'random'} {s.model}, G({s.deg},{l}), {s.n_future} heads"
    yield dict(setting=setting, peer="cached, a token a pass", **times, note=note, tokens_a_pass=tokens)


def gradients_of_heads(n_future, batch, V, naive=False):
    """Two backward passes through n_future heads, so that the second finds the gradients' memory taken."""
    model = GPT(GPTConfig(V, block_size=31, n_future=n_future))
    inputs, targets = torch.randint(V, (batch, 31)), torch.randint(V, (batch, 5, n_future))
    for _ in range(2):
        if naive:
            trunk = model.trunk(inputs)
            logits = [model.head(trunk, k, num_logits=5).flatten(0, 1) for k in range(n_future)]
            sum(F.cross_entropy(logits[k], targets[:, :, k].flatten()) for k in range(n_future)).backward()
        else:
            train.add_gradients(model, inputs, targets)


def model_with_heads(args):
    """The model of --run DIR, or a random one. Returns: it, test prefixes (M, P), settings. Raises: ValueError."""
    given = dict(resume=args.run) if args.run else dict(multi=True, path_len=5) | (TINY if args.quick else {})
    s, files, checkpoint = command_line.settle(given | dict(device="cpu"), train.SETTINGS)
    model = train.make_model(s)
    if s.objective != "multi":
        raise ValueError(f"--run {args.run} has the objective {s.objective}; give a run of train.py --multi")
    if checkpoint:
        restore(model, train.make_optimizers(model, s), checkpoint)
    return model, test_graphs(s, files)[0], s


@torch.no_grad()
def bench_decode(args):
    without = dict(no_canon=True, no_qk_norm=True)
    s = settings(args, path_len=5, **without)
    model = train.make_model(s)
    prefix, path = draw(10 if args.quick else 20_000 if args.full else 2000, s)
    batches = list(zip(prefix.split(evaluate.GRAPHS_AT_ONCE), path.split(evaluate.GRAPHS_AT_ONCE)))
    exact_match = lambda decode: lambda: sum(int((decode(p) == q).all(dim=1).sum()) for p, q in batches) / len(path)
    plain = PlainGPT(model.config)
    plain.load_state_dict(model.state_dict())
    peers = {"plain GPT, all recomputed": lambda p: decode_without_cache(plain, p, 5)}
    if installed("transformers"):
        theirs, mask = hugging_face_gpt(model.config).eval(), torch.ones_like(prefix)
        flags = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
        peers["transformers generate"] = lambda p: theirs.generate(p, attention_mask=mask[: len(p)], **flags)[:, -5:]
    ours = exact_match(lambda p: evaluate.decode(model, p, 5, "next", s.num_nodes))
    for name, decode in peers.items():
        setting = f"exact match, {len(path)} graphs G(2,5), gpt {s.n_layer} x {s.n_embd}"
        yield dict(setting=setting, peer=name, **compare(ours, exact_match(decode), args.runs))

    runs, (shortest, *lengths) = 4 * args.runs, (4, 8, 16) if args.quick else (64, 256, 1024, 2048, 4096)
    for name in ("gpt", "mamba"):
        model = train.make_model(settings(args, model=name, path_len=1000, num_nodes=2000, **without))  # long paths, for the sake of the positions
        for T in lengths:
            times = compare(token_step(model, T, runs), token_step(model, shortest, runs), runs)
            note = f"{1 / times['ratio']:.2f} times as long"
            yield dict(setting=f"a token more at T {T}, {name}, batch 8", peer=f"at T {shortest}", **times, note=note)


def token_step(model, T, runs):
    """Read T random tokens of 8 sequences into a cache. Returns: a function that decodes one token more."""
    cache, tokens = model.new_cache(8, T + runs + 1), torch.randint(50, (8, T))
    model(tokens, 1, cache)
    return lambda: model(tokens[:, :1], 1, cache)


def bench_muon(args):
    s, steps = settings(args), []
    for make in (train.make_optimizers, pytorch_optimizers):
        model = train.make_model(s)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        steps.append(lambda optimizers=make(model, s): [optimizer.step() for optimizer in optimizers])
    times = compare(*steps, 4 * args.runs)
    yield dict(setting=f"optimisers' step, {s.n_layer} x {s.n_embd}", peer="torch.optim.Muon + AdamW", **times)


def bench_size(args):
    """How a training step's time grows with each size: the exponent is 1 for a straight line."""
    larger = dict(batch_size=(64, 512), path_len=(4, 15), n_embd=(64, 256), n_layer=(3, 12))
    if args.quick:
        larger = dict(batch_size=(2, 8), path_len=(3, 5), n_embd=(16, 32), n_layer=(2, 4))
    for name, base in (("gpt", dict(n_embd=64)), ("mamba", dict(n_layer=3, batch_size=64))):
        for what, sizes in larger.items():
            steps, tokens = [], []
            for size in sizes:
                given = base | (TINY if args.quick else {}) | {what: size}
                s = command_line.settle(dict(device="cpu", model=name) | given, train.SETTINGS)[0]
                model = train.make_model(s)
                batch = data.layout("next", *draw(s.batch_size, s), s.num_nodes)
                gradients = lambda model=model, batch=batch: train.add_gradients(model, *batch)
                steps.append(training_step(gradients, train.make_optimizers(model, s)))
                tokens.append(batch[0].shape[1])
            times = compare(steps[1], steps[0], args.runs)
            label, (small, large) = ("T", tokens) if what == "path_len" else (what, sizes)
            exponent = math.log(1 / times["ratio"]) / math.log(large / small)
            setting, note = f"step, {name}, {label} {large}", f"time grows as {label}^{exponent:.2f}"
            yield dict(setting=setting, peer=f"{label} {small}", **times, note=note, exponent=exponent)


def bench_start(args):
    with tempfile.TemporaryDirectory() as folder:
        count, threads = itertools.count(), str(torch.get_num_threads())
        for setting in ("train.py --help", "train.py --steps 1 --n_test 100"):
            ours = lambda: python(*setting.split(), "--threads", threads, "--out_dir", f"{folder}/{next(count)}")
            times = compare(ours, lambda: python("-c", "import torch"), args.runs)
            note = f"{times['ours_seconds'] - times['peer_seconds']:.2f} s beyond it"
            yield dict(setting=f"python {setting}", peer="import torch", **times, note=note)


# ---------------------------------------------------------------------------------------------------------
# The command line

PARTS = dict(data=bench_data, gpt=bench_gpt, mamba=bench_mamba, triton=bench_triton, multi=bench_multi)
PARTS |= dict(decode=bench_decode, muon=bench_muon, size=bench_size, start=bench_start)


def show(r):
    """Print one row of the table."""
    sizes = [f"{r[who + '_megabytes']:,.0f} MB" if "ours_megabytes" in r else f"{1000 * r[who + '_seconds']:,.2f} ms"
             for who in ("ours", "peer")]
    print(f"{r['name']:<7}{r['setting']:<47}{sizes[0]:>14}   {r['peer']:<25}{sizes[1]:>14}"
          f"{r['ratio']:>9.2f}x   runs {r['runs']:>2}   {r['note']}", flush=True)


def save(path, part, rows):
    """Put one part's rows into a file of JSON lines, in place of those that it had."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if not line.startswith(json.dumps({"name": part})[:-1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines += [json.dumps(r) + "\n" for r in rows]
    write_whole(path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def refuse(message):
    """Say in one sentence what is wrong, and leave with status 2."""
    print(f"bench.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.py", description=__doc__.split("A ratio")[0], formatter_class=plain)
    flag = parser.add_argument
    flag("part", nargs="?", default="all", choices=("all", *PARTS), help="what to measure (default: all)")
    flag("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    flag("--run", metavar="DIR", help="multi: a run of train.py --multi to decode with (default: random weights)")
    flag("--full", action="store_true", help="decode: 20,000 graphs, not 2,000")
    flag("--quick", action="store_true", help="tiny sizes, once, to see that all works; kept only with --out")
    flag("--out", type=Path, metavar="FILE", help="where the rows go (default: results/bench.jsonl)")
    parser.error = refuse  # one sentence, without the usage
    args = parser.parse_args(argv)
    try:
        if args.threads is not None and not 1 <= args.threads <= 1024:
            raise ValueError(f"--threads is {args.threads}; give 1 to 1024")
        torch.set_num_threads(args.threads or torch.get_num_threads())
        torch.manual_seed(1)
        if args.out and args.out.exists() and not args.out.is_file():
            raise ValueError(f"--out {args.out} is no file; give the name of one")
        args.runs = 1 if args.quick else 5
        args.multi = model_with_heads(args)
        out = args.out or (None if args.quick else HOME / "results" / "bench.jsonl")
        for part in PARTS if args.part == "all" else [args.part]:
            rows = []
            for measured in PARTS[part](args):
                rows.append({"name": part, "note": "", **measured, "threads": torch.get_num_threads()})
                show(rows[-1])
            if out:
                save(out, part, rows)
    except (ValueError, OSError, OverflowError) as fault:
        refuse(fault)
    except KeyboardInterrupt:
        sys.exit("\nbench.py: stopped; the parts that were done are kept")


if __name__ == "__main__":
    main()

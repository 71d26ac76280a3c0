"""Speed and memory beside what a user might choose instead, and beside the machine's limits.

    python results/bench.py                  everything: a table of ratios, and results/bench.jsonl
    python results/bench.py gpt              one part of it; --help names them all
    python results/bench.py multi --run DIR  drafts by the model that train.py --multi left in DIR
    python results/bench.py --help           everything else

A ratio above 1 is in our favour; `compare` measures it. In each row both sides have the same sizes
and optimisers, and the loss at the same positions; beside another GPT, ours is causal and has no
Canon. A peer that is not installed is skipped, with a message; requirements-dev.txt lists them. In
this file: the protocol, the peers, the parts, main.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

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

TINY = dict(n_layer=2, n_head=2, n_embd=16, batch_size=4)  # the model of --quick
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# ------------------------------------------------------------------------------------------------
# The protocol


def seconds(function):
    """The time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def megabytes(call):
    """The peak memory of a call, beyond that of the imports, measured in a fresh process.

    Arguments: call, of a function in this file, as text. Returns: MB, a float. Linux only.
    """
    program = (
        "from results.bench import *",
        f"torch.set_num_threads({torch.get_num_threads()})",
        "before = most_memory_yet()",
        call,
        "print(most_memory_yet() - before)",
    )
    return int(python("-c", "; ".join(program))) / 1024


def most_memory_yet():
    """The most memory that this process has held so far, in kB, by Linux's own account."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def compare(ours, peer, runs=5, measure=seconds):
    """Compare two functions: call each once to warm up, then both in turn, `runs` times.

    Whatever slows the machine down for a while then slows both, and each pair of calls gives one
    ratio. Runs that would not fit in two minutes are left out. If a single pair takes longer, the
    warm-up is the measurement.

    Returns: a dict of both medians, the median of the ratios, and the number of runs.
    """
    began = time.perf_counter()
    first = measure(ours), measure(peer)
    runs = min(runs, int(120 / (time.perf_counter() - began)))
    pairs = [(measure(ours), measure(peer)) for _ in range(runs)] or [first]
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    own, theirs = (statistics.median(side) for side in zip(*pairs))
    what = measure.__name__
    return {f"ours_{what}": own, f"peer_{what}": theirs, "ratio": ratio, "runs": len(pairs)}


def python(*words):
    """Run Python in a process of its own. Returns: what it prints."""
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=HOME, check=True, capture_output=True, text=True).stdout


def installed(package):
    """Is this peer installed? If not, say so."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed, so the comparison with it is left out")
    return found


# ------------------------------------------------------------------------------------------------
# The peers


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
    """A GPT as in nanoGPT, with logits at all positions. It can load the weights of a model_gpt.GPT
    without Canon.
    """

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
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.lm_head(self.ln_f(self.h(x)))


def hugging_face_gpt(c):
    """A GPT2LMHeadModel of the sizes in the GPTConfig `c`, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, n_positions=c.block_size)
    no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    tokens = dict(vocab_size=c.vocab_size, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, **tokens))


def mamba_named(name, V, C, layers, N):
    """One implementation of Mamba.

    Returns: the model, and a function from tokens (B, T), int64, to logits (B, T, V).
    """
    if name.startswith("mambapy"):
        from mambapy import mamba

        pscan = name == "mambapy pscan"
        sizes = dict(d_model=C, n_layers=layers, d_state=N)
        trunk = mamba.Mamba(mamba.MambaConfig(**sizes, pscan=pscan))
        embedding, norm = nn.Embedding(V, C), nn.RMSNorm(C, eps=1e-5)
        model = nn.Sequential(embedding, trunk, norm, nn.Linear(C, V, bias=False))
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
    """The usual forward and backward pass. Returns: the loss.

    Arguments: logits_of, a function from inputs (B, T) to logits at all positions, or at the last
        ones; inputs and targets, as from data.layout.
    """
    logits = logits_of(inputs)
    labels = F.pad(targets[:, :, 0], (logits.shape[1] - targets.shape[1], 0), value=data.IGNORE)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=data.IGNORE)
    loss.backward()
    return loss.item()


def pytorch_optimizers(model, s):
    """PyTorch's own optimisers, set as train.make_optimizers sets ours, but that positions learn at
    the full rate, which takes as long. Returns: a list.
    """
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if s.optimizer == "muon" and "h." in name and p.ndim == 2 else rest).append(p)
    optimizers = [torch.optim.AdamW(rest, s.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, 10 * s.lr, weight_decay=s.weight_decay))
    return optimizers


def decode_without_cache(model, prefix, length):
    """Greedy decoding that reads the whole sequence again for each token: (B, length), int64."""
    tokens = prefix
    for _ in range(length):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=2)], dim=1)
    return tokens[:, -length:]


# ------------------------------------------------------------------------------------------------
# The parts. Each yields rows: dicts of setting, peer, what compare returns, and a note.


def settings(args, **given):
    """train.py's settings with these flags; --quick shrinks the model."""
    given = {"device": "cpu", "deg": 2} | given | (TINY if args.quick else {})
    return command_line.settle(given)[0]


def draw(count, s):
    """Random graphs as the settings describe them: prefix (count, P) and path (count, l), int64."""
    generator = torch.Generator().manual_seed(1)
    return data.sample_graphs(count, s.deg, s.path_len, s.num_nodes, generator)


def training_step(add_gradients, optimizers):
    """A function that takes one whole step: forward, backward, optimisers."""

    def step():
        add_gradients()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def best_of_ten(function):
    """The shortest of ten calls, in seconds: what the machine can do at best."""
    return min(seconds(function) for _ in range(10))


def bench_data(args):
    """Drawing the graphs of a step, beside the whole step of the default GPT."""
    s = settings(args, objective="teacherless")
    model, forbidden = train.make_model(s), torch.empty(0, dtype=torch.int64)
    draw_batch = lambda: train.batch_of(0, s, None, forbidden)
    gradients = lambda: train.learn(model, *draw_batch(), s, 0)
    step = training_step(gradients, train.make_optimizers(model, s))
    times = compare(draw_batch, step, args.runs)
    note = f"{1 / times['ratio']:.1%} of the step"
    yield dict(setting=f"graphs of a step, batch {s.batch_size}", peer="the step", **times, note=note)


def bench_gpt(args):
    n = 256 if args.quick else 2048
    a = torch.rand(n, n)
    limit = 2 * n**3 / best_of_ten(lambda: a @ a)  # flop/s of float32 matrix products
    adamw, with_transformers = dict(optimizer="adamw"), installed("transformers")
    wide = dict(path_len=5, n_layer=6, n_embd=384, n_head=6, batch_size=64)
    for given in ({}, adamw, adamw | wide):
        s = settings(args, causal=True, no_canon=True, **given)
        l, model = s.path_len, train.make_model(s)
        batch = data.layout("next", *draw(s.batch_size, s), s.num_nodes)
        gradients = lambda: train.add_gradients(model, *batch)
        with FlopCounterMode(display=False) as counter:  # on a CPU it leaves attention out
            gradients()
        flops = counter.get_total_flops()
        ours = training_step(gradients, train.make_optimizers(model, s))
        plain = PlainGPT(model.config)
        peers = {"plain GPT, all logits": (plain, plain)}
        if with_transformers:
            theirs, flags = hugging_face_gpt(model.config), dict(logits_to_keep=l, use_cache=False)
            peers["transformers"] = theirs, lambda tokens: theirs(tokens, **flags).logits
        for name, (peer, logits_of) in peers.items():
            gradients = lambda: plain_gradients(logits_of, *batch)
            theirs_step = training_step(gradients, pytorch_optimizers(peer, s))
            times = compare(ours, theirs_step, args.runs)
            share = flops / times["ours_seconds"] / limit
            note = f"{share:.0%} of the sgemm limit, {limit / 1e9:,.0f} Gflop/s"
            setting = f"step, G({s.deg},{l}), {s.n_layer} x {s.n_embd}, batch {s.batch_size}"
            limits = dict(flops=flops, sgemm_flops_per_second=limit)
            yield dict(setting=f"{setting}, {s.optimizer}", peer=name, **times, note=note, **limits)


def bench_mamba(args):
    x = torch.rand(2**19)  # as many numbers as in a block of FastScan
    exp_rate = len(x) / best_of_ten(lambda out=torch.empty_like(x): torch.exp2(x, out=out))
    bandwidth = copy_bandwidth(2**18 if args.quick else 2**26)
    s = settings(args, model="mamba")
    V, C, layers, N = 54, s.n_embd, s.n_layer, s.d_state
    peers = ["plain recurrence"] + ["mambapy pscan", "mambapy loop"] * installed("mambapy")
    peers += ["transformers"] * installed("transformers")
    for batch, T in ((2, 8), (1, 16)) if args.quick else ((128, 36), (4, 512)):
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
            exps = 2 * layers * batch * T * 2 * C * N  # forward, and again backward
            # Forward: x and dt in, y out. Backward: x, dt and dy in, dx and ddt out.
            moved = layers * 8 * batch * T * 2 * C * 4
            own = times["ours_seconds"]
            note = f"exp alone is {exps / exp_rate / own:.0%} of ours,"
            note += f" the scan's bytes {moved / bandwidth / own:.1%}"
            setting = f"step, {layers} x {C}, N {N}, batch {batch}, T {T}, adamw"
            limits = dict(exps=exps, exps_per_second=exp_rate)
            limits |= dict(scan_bytes=moved, bytes_per_second=bandwidth)
            yield dict(setting=setting, peer=name, **times, note=note, **limits)

    sizes = "2, 8, 16, 4" if args.quick else "64, 64, 256, 16"
    if sys.platform == "linux":
        ours, peer = (f"gradients_of_scan('{method}', {sizes})" for method in ("fast", "reference"))
        memory = compare(ours, peer, min(args.runs, 3), megabytes)
        setting = f"peak memory of the scan, (B, T, E, N) = ({sizes})"
        yield dict(setting=setting, peer="plain recurrence", **memory)


def copy_bandwidth(count, device="cpu"):
    """The memory's bandwidth, in bytes a second read and written, by copying `count` numbers."""
    source = torch.rand(count, device=device)
    out = torch.empty_like(source)
    return 2 * source.nbytes / best_of_ten(lambda: finish(out.copy_(source)))


def finish(_):
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scan_inputs(batch, T, E, N):
    """Random x, dt, A, B, C, D for the selective scan: a list of float32 leaves with gradients."""
    shapes = (batch, T, E), (batch, T, E), (E, N), (batch, T, N), (batch, T, N), (E,)
    x, dt, A, B, C, D = (torch.rand(shape) for shape in shapes)
    return [v.requires_grad_() for v in (x, dt, -A, B, C, D)]


def gradients_of_scan(method, *sizes):
    """One selective scan, forward and backward, on random numbers."""
    selective_scan(*scan_inputs(*sizes), method=method).sum().backward()


def bench_multi(args):
    B, V = (8, 1000) if args.quick else (256, 32_000)
    ours, one = (f"gradients_of_heads({n}, {B}, {V})" for n in (4, 1))
    peers = {"1 head": one, "4 heads, losses summed": ours.replace(")", ", naive=True)")}
    for peer, call in peers.items() if sys.platform == "linux" else ():
        memory = compare(ours, call, min(args.runs, 3), megabytes)
        note = f"{1 / memory['ratio'] - 1:+.0%} memory"
        setting = f"peak memory, 4 heads, {V} tokens, batch {B}"
        yield dict(setting=setting, peer=peer, **memory, note=note)

    model, prefix, s = args.multi
    graphs, l = prefix[: 2 if args.quick else 50].split(1), s.path_len
    decode = lambda graph: evaluate.decode(model, graph, l, "multi", s.num_nodes)
    plain = torch.no_grad()(lambda: [decode(graph) for graph in graphs])
    by_drafts = lambda: [decode_by_drafts(model, graph, l) for graph in graphs]
    times = compare(by_drafts, plain, args.runs)
    tokens = l * len(graphs) / sum(passes for _, passes in by_drafts())
    note = f"{tokens:.2f} tokens a pass"
    note += ", but random drafts are as good as never kept" * (not args.run)
    weights = "trained" if args.run else "random"
    setting = f"drafts, {weights} {s.model}, G({s.deg},{l}), {s.n_future} heads"
    peer = "cached, a token a pass"
    yield dict(setting=setting, peer=peer, **times, note=note, tokens_a_pass=tokens)


def gradients_of_heads(n_future, batch, V, naive=False):
    """Two backward passes through n_future heads: in the second, gradients already exist."""
    model = GPT(GPTConfig(V, block_size=31, n_future=n_future))
    inputs, targets = torch.randint(V, (batch, 31)), torch.randint(V, (batch, 5, n_future))
    for _ in range(2):
        if naive:
            trunk = model.trunk(inputs)
            heads = range(n_future)
            logits = [model.head(trunk, k, num_outputs=5).flatten(0, 1) for k in heads]
            losses = (F.cross_entropy(logits[k], targets[:, :, k].flatten()) for k in heads)
            sum(losses).backward()
        else:
            train.add_gradients(model, inputs, targets)


def model_with_heads(args):
    """The model of --run DIR, or a random one.

    Returns: the model, test prefixes (M, P), int64, and the settings. Raises: ValueError, OSError.
    """
    given = dict(multi=True, path_len=5) | (TINY if args.quick else {})
    if args.run:
        given = dict(resume=args.run)
    s, files, checkpoint = command_line.settle(given | dict(device="cpu"))
    model = train.make_model(s)
    if s.objective != "multi":
        raise ValueError(
            f"--run {args.run} has the objective {s.objective}; give a run of train.py --multi"
        )
    if checkpoint:
        restore(checkpoint, model)
    return model, test_graphs(s, files)[0], s


@torch.no_grad()
def bench_decode(args):
    without = dict(causal=True, no_canon=True)
    s = settings(args, path_len=5, **without)
    model = train.make_model(s)
    prefix, path = draw(10 if args.quick else 20_000 if args.full else 2000, s)
    size = evaluate.GRAPHS_AT_ONCE
    batches = list(zip(prefix.split(size), path.split(size)))
    hits = lambda written, path: int((written == path).all(dim=1).sum())
    exact_match = lambda decode: lambda: sum(hits(decode(p), q) for p, q in batches) / len(path)
    plain = PlainGPT(model.config)
    plain.load_state_dict(model.state_dict())
    peers = {"plain GPT, all recomputed": lambda p: decode_without_cache(plain, p, 5)}
    if installed("transformers"):
        theirs = hugging_face_gpt(model.config).eval()
        flags = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
        mask = torch.ones_like(prefix)
        generate = lambda p: theirs.generate(p, attention_mask=mask[: len(p)], **flags)[:, -5:]
        peers["transformers generate"] = generate
    ours = exact_match(lambda p: evaluate.decode(model, p, 5, "next", s.num_nodes))
    for name, decode in peers.items():
        setting = f"exact match, {len(path)} graphs G(2,5), gpt {s.n_layer} x {s.n_embd}"
        yield dict(setting=setting, peer=name, **compare(ours, exact_match(decode), args.runs))

    runs = 4 * args.runs
    shortest, *lengths = (4, 8, 16) if args.quick else (64, 256, 1024, 2048, 4096)
    long_paths = dict(path_len=1000, num_nodes=2000)  # so that the model has enough positions
    for name in ("gpt", "mamba"):
        model = train.make_model(settings(args, model=name, **long_paths, **without))
        for T in lengths:
            times = compare(token_step(model, T, runs), token_step(model, shortest, runs), runs)
            note = f"{1 / times['ratio']:.2f} times as long"
            setting = f"a token more at T {T}, {name}, batch 8"
            yield dict(setting=setting, peer=f"at T {shortest}", **times, note=note)


def token_step(model, T, runs):
    """Fill a cache with T random tokens of 8 graphs. Returns: a function that decodes one more."""
    cache, tokens = model.new_cache(8, T + runs + 1), torch.randint(50, (8, T))
    model(tokens, 1, cache)
    return lambda: model(tokens[:, :1], 1, cache)


def bench_muon(args):
    s, steps = settings(args), []
    for make in (train.make_optimizers, pytorch_optimizers):
        model = train.make_model(s)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        steps.append(lambda made=make(model, s): [optimizer.step() for optimizer in made])
    times = compare(*steps, 4 * args.runs)
    setting = f"optimisers' step, {s.n_layer} x {s.n_embd}"
    yield dict(setting=setting, peer="torch.optim.Muon + AdamW", **times)


def bench_size(args):
    """How the time of a training step grows with each size; an exponent of 1 is linear growth."""
    larger = dict(batch_size=(64, 512), path_len=(4, 15), n_embd=(64, 256), n_layer=(3, 12))
    if args.quick:
        larger = dict(batch_size=(2, 8), path_len=(3, 5), n_embd=(16, 32), n_layer=(2, 4))
    for name, base in (("gpt", {}), ("mamba", dict(n_layer=3, batch_size=64))):
        for what, sizes in larger.items():
            steps, tokens = [], []
            for size in sizes:
                given = dict(device="cpu", model=name, deg=2, num_nodes=50) | base
                given |= (TINY if args.quick else {}) | {what: size}
                s = command_line.settle(given)[0]
                model = train.make_model(s)
                batch = data.layout("next", *draw(s.batch_size, s), s.num_nodes)
                gradients = lambda m=model, b=batch: train.add_gradients(m, *b)
                steps.append(training_step(gradients, train.make_optimizers(model, s)))
                tokens.append(batch[0].shape[1])
            times = compare(steps[1], steps[0], args.runs)
            label, (small, large) = ("T", tokens) if what == "path_len" else (what, sizes)
            exponent = math.log(1 / times["ratio"]) / math.log(large / small)
            setting, peer = f"step, {name}, {label} {large}", f"{label} {small}"
            note = f"time grows as {label}^{exponent:.2f}"
            yield dict(setting=setting, peer=peer, **times, note=note, exponent=exponent)


def bench_start(args):
    with tempfile.TemporaryDirectory() as folder:
        count, threads = itertools.count(), str(torch.get_num_threads())
        for setting in ("train.py --help", "train.py --steps 1 --n_test 100"):
            words = [*setting.split(), "--threads", threads, "--out_dir"]
            ours = lambda: python(*words, f"{folder}/{next(count)}")
            times = compare(ours, lambda: python("-c", "import torch"), args.runs)
            note = f"{times['ours_seconds'] - times['peer_seconds']:.2f} s beyond it"
            yield dict(setting=f"python {setting}", peer="import torch", **times, note=note)


# ------------------------------------------------------------------------------------------------
# The command line

PARTS = dict(data=bench_data, gpt=bench_gpt, mamba=bench_mamba, multi=bench_multi)
PARTS |= dict(decode=bench_decode, muon=bench_muon, size=bench_size, start=bench_start)


def show(r):
    """Print one row of the table."""
    if "ours_megabytes" in r:
        ours, peer = (f"{r[f'{who}_megabytes']:,.0f} MB" for who in ("ours", "peer"))
    else:
        ours, peer = (f"{1000 * r[f'{who}_seconds']:,.2f} ms" for who in ("ours", "peer"))
    print(f"{r['name']:<7}{r['setting']:<47}{ours:>14}   {r['peer']:<25}{peer:>14}"
          f"{r['ratio']:>9.2f}x   runs {r['runs']:>2}   {r['note']}", flush=True)


def save(path, part, rows):
    """Replace one part's rows in a file of JSON lines. Raises: OSError, UnicodeDecodeError."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if not line.startswith(json.dumps({"name": part})[:-1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines += [json.dumps(r) + "\n" for r in rows]
    write_whole(path, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))


def refuse(message):
    """Say in one sentence what is wrong, and exit with status 2."""
    print(f"bench.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=__doc__.split("A ratio")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("part", nargs="?", default="all", choices=("all", *PARTS),
         help="what to measure (default: all)")
    flag("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    flag("--run", metavar="DIR",
         help="multi: decode with this run of train.py --multi (default: random weights)")
    flag("--full", action="store_true", help="decode: 20,000 graphs in place of 2,000")
    flag("--quick", action="store_true",
         help="tiny sizes, once, to see that all works; saved only with --out")
    flag("--out", type=Path, metavar="FILE",
         help="where the rows go (default: results/bench.jsonl)")
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
                threads = torch.get_num_threads()
                rows.append({"name": part, "note": "", **measured, "threads": threads})
                show(rows[-1])
            if out:
                save(out, part, rows)
    except (ValueError, OSError, OverflowError) as fault:
        refuse(fault)
    except KeyboardInterrupt:
        sys.exit("\nbench.py: stopped; the finished parts are saved")


if __name__ == "__main__":
    main()

"""model_mamba.py: the scan's three ways agree, its gradient is right and small in memory, the model is Mamba."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model_mamba
import train
from helpers import settings
from model_mamba import Mamba, MambaConfig, selective_scan
from scan import FastScan

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import make_mamba_reference  # noqa: E402

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")


def scan_inputs(batch, length, channels, N, dtype=torch.float64, seed=1):
    """x, dt, A, B, C, D, initial_state: random, of the sizes that a model has."""
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    x, dt, A = normal(batch, length, channels), F.softplus(normal(batch, length, channels)), -normal(channels, N).exp()
    B, C, D = normal(batch, length, N), normal(batch, length, N), normal(channels)
    inputs = [v.to(dtype) for v in (x, dt, A, B, C, D, normal(batch, channels, N))]
    return [v.requires_grad_() for v in inputs]


def outputs_and_gradients(method, inputs):
    """y, last state, then the gradients with respect to the seven inputs, of a loss with random weights."""
    y, state = selective_scan(*inputs, return_state=True, method=method)
    generator = torch.Generator().manual_seed(3)
    to_y, to_state = (torch.randn(v.shape, generator=generator).to(v.dtype) for v in (y, state))
    return [y, state, *torch.autograd.grad((y * to_y).sum() + (state * to_state).sum(), inputs)]


# ---------------------------------------------------------------------------------------------------------
# The scan


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 17, 64])
def test_fast_equals_reference(length, dtype, tolerance):
    inputs = scan_inputs(3, length, 10, 4, dtype)
    for name, fast, slow in zip(
        ("y", "state", *NAMES), outputs_and_gradients("fast", inputs), outputs_and_gradients("reference", inputs)
    ):
        assert fast.dtype == dtype and fast.shape == slow.shape, name
        assert (fast - slow).abs().max() <= tolerance * max(1, slow.abs().max()), name


def test_blocks_of_graphs_do_not_matter(monkeypatch):
    inputs = scan_inputs(7, 19, 6, 3)
    whole = outputs_and_gradients("fast", inputs)
    monkeypatch.setattr(FastScan, "BLOCK", {"cpu": 2 * 8 * 6 * 3})  # two graphs a block: 2 + 2 + 2 + 1
    for a, b in zip(whole, outputs_and_gradients("fast", inputs)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 8, 11])
def test_gradcheck(length):
    def scan(*inputs):
        return selective_scan(*inputs, return_state=True, method="fast")

    assert torch.autograd.gradcheck(scan, scan_inputs(2, length, 3, 2))


def test_gradient_without_initial_state():
    inputs = scan_inputs(2, 9, 4, 3)[:6]
    fast = torch.autograd.grad(selective_scan(*inputs, method="fast").sin().sum(), inputs)
    slow = torch.autograd.grad(selective_scan(*inputs, method="reference").sin().sum(), inputs)
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["reference", "fast"])
def test_one_state_can_be_gone_on_from_twice(method):
    inputs = [v.detach() for v in scan_inputs(2, 9, 4, 3)]
    _, state = selective_scan(*inputs, return_state=True, method=method)
    before = state.clone()
    first, again = (selective_scan(*inputs[:6], state, method=method) for _ in range(2))
    assert torch.equal(state, before) and torch.equal(first, again)


@pytest.mark.parametrize("dt", [0.0, 1e-30, 1e-8, 30.0, 1e8, 1e30])
def test_extreme_dt_gives_no_nan(dt):
    inputs = scan_inputs(1, 300, 3, 4, torch.float32)
    with torch.no_grad():
        inputs[0].mul_(1e-30 if dt > 1e3 else 1)  # the input u = dt x must be a number itself
        inputs[1].fill_(dt)
    for fast, slow in zip(outputs_and_gradients("fast", inputs)[:2], outputs_and_gradients("reference", inputs)[:2]):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    y = selective_scan(*inputs, method="fast")
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), inputs))


def test_long_sequence():
    inputs = scan_inputs(1, 4096, 4, 4, torch.float32)
    with torch.no_grad():
        inputs[1][:, ::2] *= 1e-4
        inputs[1][:, 1000:1100] *= 100
    for name, fast, slow in zip(
        ("y", "state", *NAMES), outputs_and_gradients("fast", inputs), outputs_and_gradients("reference", inputs)
    ):
        assert fast.isfinite().all() and (fast - slow).abs().max() <= 1e-5 * max(1, slow.abs().max()), name


@pytest.mark.parametrize("method", ["reference", "fast"])
def test_bfloat16_inputs_keep_a_float32_state(method):
    low = [v.detach().to(torch.bfloat16) for v in scan_inputs(2, 200, 5, 4)]
    low[2], low[5] = low[2].float(), low[5].float()  # A and D are parameters, in float32
    low = [v.requires_grad_() for v in low]
    y, state = selective_scan(*low, return_state=True, method=method)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    exact_y, exact_state = selective_scan(*(v.detach().double() for v in low), return_state=True, method="reference")
    assert (state - exact_state).abs().max() < 1e-5 * exact_state.abs().max()
    torch.testing.assert_close(y, exact_y.to(torch.bfloat16), rtol=1e-2, atol=1e-5)
    gradients = torch.autograd.grad(y.float().sum(), low)
    assert [g.dtype for g in gradients] == [v.dtype for v in low] and all(g.isfinite().all() for g in gradients)
    widened = low[1].detach().float()  # mixed precision computes the softplus in float32
    assert torch.equal(selective_scan(low[0], widened, *low[2:], method=method), y)


def test_memory_is_a_third_of_the_recurrence_and_linear():
    # The most memory that a process has ever held only grows, so the runs go from the smallest to the largest.
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which only Linux has")
    program = """if True:
        import torch
        from model_mamba import selective_scan
        torch.set_num_threads(1)
        def peak_after(method, batch, length, E=256, N=16):
            x, dt, B, C = torch.randn(2, batch, length, E).abs().unbind() + torch.randn(2, batch, length, N).unbind()
            inputs = [v.requires_grad_() for v in (x, dt, -torch.rand(E, N), B, C, torch.ones(E))]
            selective_scan(*inputs, method=method).sum().backward()
            return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
        start = max(peak_after("fast", 1, 8), peak_after("reference", 1, 8))
        runs = [("fast", 64, 64), ("fast", 64, 192), ("reference", 64, 64)]
        print(*(peak_after(*run) - start for run in runs))
    """
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    fast, fast_three_times_as_long, reference = map(int, answer.stdout.split())
    assert fast <= reference / 3
    assert fast_three_times_as_long <= 3.3 * fast


def test_bad_scan_inputs_are_named():
    good = dict(zip(NAMES, (v.detach() for v in scan_inputs(2, 3, 4, 5))))
    bad_shapes = {"dt": (2, 3, 5), "A": (5, 5), "B": (2, 3, 4), "C": (2, 4, 5), "D": (1,), "initial_state": (2, 5, 4)}
    for name, shape in bad_shapes.items():
        with pytest.raises(ValueError, match=f"^{name} has shape"):
            selective_scan(**{**good, name: torch.zeros(shape, dtype=torch.float64)})
    for name in ("dt", "B", "C"):
        with pytest.raises(ValueError, match=f"^{name} has dtype torch.float32"):
            selective_scan(**{**good, name: good[name].float()})
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name} has dtype"):
            selective_scan(**{**good, name: good[name].long()})
    for x in (good["x"][0], good["x"][:, :0]):
        with pytest.raises(ValueError, match="^x must be"):
            selective_scan(**{**good, "x": x})
    with pytest.raises(ValueError, match="unknown; choose one of auto, reference, fast, triton"):
        selective_scan(**good, method="quick")


def test_triton_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "scan_triton", None)  # as if the file were not there
    inputs = scan_inputs(2, 3, 4, 5)
    with pytest.raises(ImportError, match="needs the package triton"):
        selective_scan(*inputs, method="triton")
    assert torch.equal(selective_scan(*inputs, method="auto"), selective_scan(*inputs, method="fast"))


# ---------------------------------------------------------------------------------------------------------
# The model


def small_model(dtype=torch.float64, **settings):
    torch.manual_seed(1)
    upstream = dict(vocab_size=13, n_layer=3, n_embd=8, d_state=4, d_conv=4, mimetic=False)
    return Mamba(MambaConfig(**upstream | settings)).to(dtype)


def random_tokens(*shape, vocab_size=13):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["reference", "fast"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_logits_are_those_of_the_formulas(dtype, tolerance, method):
    saved = {name: torch.from_numpy(value) for name, value in np.load(make_mamba_reference.FILE).items()}
    tokens, expected = saved.pop("tokens"), saved.pop("logits")
    saved["lm_head.weight"] = saved["embedding.weight"]
    config = MambaConfig(vocab_size=11, n_layer=2, n_embd=6, d_state=4, d_conv=4, dt_rank=2, scan=method)
    model = Mamba(config).to(dtype)
    model.load_state_dict(saved)
    assert (model(tokens) - expected).abs().max() < tolerance


def test_reference_file_is_what_its_script_makes():
    saved, made = np.load(make_mamba_reference.FILE), make_mamba_reference.make()
    assert saved.keys() == made.keys()
    for name in made:
        np.testing.assert_allclose(saved[name], made[name], rtol=1e-9, atol=1e-12)


def test_equals_transformers():
    transformers = pytest.importorskip("transformers", reason="the comparison with Hugging Face needs transformers")
    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=13, hidden_size=24, state_size=16, num_hidden_layers=3, use_cache=False)
    )
    ours = small_model(torch.float32, n_embd=24, d_state=16)
    with torch.no_grad():
        for name, p in theirs.named_parameters():  # noise on all, or norms and D would be ones
            p.add_(0.1 * torch.randn_like(p))
    rename = lambda name: name.removeprefix("backbone.").replace("embeddings", "embedding")
    ours.load_state_dict({rename(name): p for name, p in theirs.state_dict().items()})
    tokens = random_tokens(4, 50)
    assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4


def test_names_and_shapes_are_those_of_state_spaces():
    model = small_model(n_embd=32, n_layer=1)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == {
        "embedding.weight": (13, 32),
        "layers.0.norm.weight": (32,),
        "layers.0.mixer.A_log": (64, 4),
        "layers.0.mixer.D": (64,),
        "layers.0.mixer.in_proj.weight": (128, 32),
        "layers.0.mixer.conv1d.weight": (64, 1, 4),
        "layers.0.mixer.conv1d.bias": (64,),
        "layers.0.mixer.x_proj.weight": (2 + 2 * 4, 64),
        "layers.0.mixer.dt_proj.weight": (64, 2),
        "layers.0.mixer.dt_proj.bias": (64,),
        "layers.0.mixer.out_proj.weight": (32, 64),
        "norm_f.weight": (32,),
        "lm_head.weight": (13, 32),
    }
    assert model.lm_head.weight is model.embedding.weight


def test_initial_values():
    model = small_model(torch.float32, n_embd=64, n_layer=4, d_state=16)
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    mixer = model.layers[0].mixer
    torch.testing.assert_close(-mixer.A_log.exp(), -torch.arange(1.0, 17).expand(128, 16))
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.00099 < dt.min() < 0.002 and 0.05 < dt.max() < 0.101
    assert 0.9 < mixer.out_proj.weight.abs().max() * 128**0.5 * 4**0.5 <= 1  # ±1/sqrt(E), over sqrt(n_layer)


@torch.no_grad()
def test_mimetic_initial_values_read_what_was_written_under_the_same_label():
    """One mixer, as it starts, on tokens x … x …: what stood before the first x comes back at the second."""
    torch.manual_seed(0)
    mixer = Mamba(MambaConfig(vocab_size=20, n_embd=64)).layers[0].mixer
    half = len(mixer.D) // 2
    torch.testing.assert_close(-mixer.A_log.exp(), torch.full_like(mixer.A_log, -0.03))
    dt = F.softplus(mixer.dt_proj.bias)
    assert 0.099 < dt.min() < 0.2 and 0.6 < dt.max() < 1.01
    B, C = mixer.x_proj.weight[mixer.dt_rank :].chunk(2)
    assert torch.equal(B, C) and not B[:, half:].any()
    torch.testing.assert_close(B @ B.T, torch.eye(len(B)))
    x = torch.randn(1, 5, len(mixer.D))
    newest, before = mixer.conv(x, None).chunk(2, dim=2)
    assert torch.equal(newest, x[:, :, :half])
    assert torch.equal(before[:, 1:], x[:, :-1, half:]) and not before[:, 0].any()
    to_x = mixer.in_proj.weight[: len(mixer.D)]
    torch.testing.assert_close(mixer.out_proj.weight @ to_x, 0.3 * torch.eye(64))  # two halves of 0.15 each


@torch.no_grad()
def test_initial_weights_hold_little_of_the_plan():
    """Which inner node is nearest to what the last two places of the prefix hold, layer by layer?"""
    torch.manual_seed(5)
    P = data.prefix_length(2, 5)
    model = Mamba(MambaConfig(data.vocab_size(20), prefix_len=P))
    prefix, path = data.sample_graphs(1000, 2, 5, 20, torch.Generator().manual_seed(6))
    inner = data.trace_arms(prefix, 2, 20)[:, :, 1:4].flatten(1)  # (B, 6): the nodes between start and arms' ends
    x, share = model.embedding(torch.cat([prefix, prefix], dim=1)), []
    for block in model.layers:
        x = block(x, x.shape[1])
        for place in (-2, -1):  # the goal's, and that of `=`
            likeness = (model.embedding(inner) @ model.norm_f(x)[:, place, :, None])[:, :, 0]
            nearest = inner.gather(1, likeness.argmax(1, keepdim=True))  # (B, 1)
            share.append((nearest == path[:, 1:4]).float().mean(0))
    difficult, second, before_goal = torch.stack(share).amax(0).tolist()
    assert max(difficult, second) < 0.27  # a guess is right in a sixth
    assert before_goal < 0.36


@pytest.mark.parametrize("changed", [0, 5, 8, 11])
def test_later_tokens_never_change_earlier_logits(changed):
    model, tokens = small_model(), random_tokens(2, 12)
    before = model(tokens)
    tokens[:, changed] = (tokens[:, changed] + 1) % 13
    after = model(tokens)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).any(dim=2).all()


@pytest.mark.parametrize("chunks", [[1] * 21, [21], [13, 1, 1, 6], [2, 19], [1, 9, 8, 3]])
def test_cached_decoding_equals_the_full_pass(chunks):
    model, tokens = small_model(), random_tokens(3, 21)
    cache = model.new_cache(3, 21)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_prefix_that_is_read_twice_is_the_sequence_with_the_prefix_before_it():
    twice, once, tokens = small_model(prefix_len=5), small_model(), random_tokens(2, 12)
    once.load_state_dict(twice.state_dict())
    longer = torch.cat([tokens[:, :5], tokens], dim=1)
    torch.testing.assert_close(twice(tokens), once(longer)[:, 5:], rtol=1e-10, atol=1e-12)
    assert torch.equal(twice.trunk(tokens), once.trunk(longer))
    for chunks in ([12], [5, 7], [6, 1, 1, 4], [5] + [1] * 7):  # the first holds the prefix
        cache = twice.new_cache(2, 12)
        parts = [twice(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), twice(tokens), rtol=1e-10, atol=1e-10)


def test_cache_keeps_its_size():
    model, tokens = small_model(torch.float32), random_tokens(2, 40)
    cache = model.new_cache(2, 40)
    size = lambda: [(c.window.untyped_storage().nbytes(), c.state.untyped_storage().nbytes()) for c in cache]
    with torch.no_grad():
        model(tokens[:, :1], cache=cache)
        after_one = size()
        model(tokens[:, 1:20], cache=cache)
        assert size() == after_one
        for t in range(20, 40):
            model(tokens[:, t : t + 1], cache=cache)
    assert size() == after_one


@pytest.mark.parametrize("num_outputs", [1, 2, 12])
def test_num_outputs_are_the_last_of_all(num_outputs):
    model, tokens = small_model(), random_tokens(2, 12)
    last, every = model(tokens, num_outputs=num_outputs), model(tokens)
    torch.testing.assert_close(last, every[:, -num_outputs:], rtol=1e-10, atol=1e-12)
    cache = model.new_cache(2, 14)
    model(tokens, num_outputs=num_outputs, cache=cache)
    more = torch.cat([tokens, tokens[:, :2]], dim=1)
    torch.testing.assert_close(model(more[:, 12:], cache=cache), model(more)[:, 12:], rtol=1e-10, atol=1e-12)


def test_heads():
    model, tokens = small_model(n_future=3), random_tokens(2, 9)
    x = model.trunk(tokens)
    assert torch.equal(model.head(x), model(tokens))
    logits = [model.head(x, k, num_outputs=4) for k in range(3)]
    assert [row.shape for row in logits] == [(2, 4, 13)] * 3
    sum(row.logsumexp(dim=2).sum() for row in logits).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    alone = small_model(n_future=1)
    names = alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("future")})
    assert not names.missing_keys and torch.equal(alone(tokens), model(tokens))


def test_model_gradients_equal_those_of_the_reference_scan():
    tokens, gradients = random_tokens(2, 11), []
    for method in ("reference", "fast"):
        model = small_model(scan=method)
        F.cross_entropy(model(tokens, num_outputs=5).flatten(0, 1), tokens[:, :5].flatten()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_mixed_precision_stays_near_float32():
    model, tokens = small_model(torch.float32), random_tokens(2, 30)
    exact = model(tokens)
    exact.logsumexp(dim=2).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
        logits.float().logsumexp(dim=2).sum().backward()
    assert (logits - exact).norm() < 0.03 * exact.norm()
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert (p.grad - gradient).norm() < 0.05 * gradient.norm(), name


@pytest.mark.parametrize("method", ["auto", "reference", "fast"])
def test_a_models_scan_is_the_one_that_is_asked_for(monkeypatch, method):
    asked, real = [], model_mamba.selective_scan
    monkeypatch.setattr(model_mamba, "selective_scan", lambda *given: asked.append(given[8]) or real(*given))
    train.make_model(settings(model="mamba", scan=method, n_layer=2, n_embd=16))(torch.zeros(1, 30, dtype=torch.int64))
    assert asked == [method] * 2

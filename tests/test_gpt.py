"""The GPT: against the formulas written out in numpy, what sees what, and the same with a cache as without."""

import numpy as np
import pytest
import torch

import data
from model_gpt import GPT, GPTConfig

SIZES = dict(vocab_size=14, block_size=24, n_layer=3, n_head=2, n_embd=16)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**SIZES | changes)).double()
    for p in model.parameters():  # gains too: nothing may hide behind a 1
        p.data += 0.1 * torch.randn_like(p)
    return model


def tokens(batch, length, seed=0):
    return torch.randint(14, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_by_the_formulas(model, sequence):
    """One sequence through the network with numpy and loops over heads and positions: (T, V)."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return w[name + ".weight"] * x + w.get(name + ".bias", 0)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = np.stack([w["wte.weight"][token] + w["wpe.weight"][place] for place, token in enumerate(sequence)])
    D = model.config.n_embd // model.config.n_head
    for layer in range(model.config.n_layer):
        block = f"h.{layer}."
        h = norm(x, block + "ln_1")
        if model.config.canon:
            kernel = w[block + "canon.weight"]  # (C, 4), the oldest of four tokens first
            h = np.stack([h[t] + sum(kernel[:, i] * h[t - 3 + i] for i in range(4) if t - 3 + i >= 0) for t in range(len(h))])
        q, k, v = np.split(linear(h, block + "attn.c_attn"), 3, axis=1)
        heads = []
        for j in range(model.config.n_head):
            mine = slice(j * D, (j + 1) * D)
            queries, keys, rows = q[:, mine], k[:, mine], []
            for t in range(len(x)):
                end = max(t + 1, model.config.prefix_len)
                scores = np.exp(keys[:end] @ queries[t] / np.sqrt(D))
                rows.append(scores / scores.sum() @ v[:end, mine])
            heads.append(np.stack(rows))
        x = x + linear(np.concatenate(heads, axis=1), block + "attn.c_proj")
        h = linear(norm(x, block + "ln_2"), block + "mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))  # GELU as GPT-2 has it
        x = x + linear(h, block + "mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


VARIANTS = [{}, dict(canon=False), dict(prefix_len=12)]


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_are_those_of_the_formulas(changes):
    model = make(**changes)
    sequence = tokens(1, 20)
    expected = logits_by_the_formulas(model, sequence[0].tolist())
    assert np.abs(model(sequence)[0].detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("prefix_len", [0, 12])
def test_a_later_token_never_changes_an_earlier_logit_outside_the_prefix(prefix_len):
    model = make(prefix_len=prefix_len)
    first = tokens(2, 20)
    before = model(first)
    for place in range(20):
        changed = first.clone()
        changed[:, place] = (changed[:, place] + 1) % 14
        differs = (before != model(changed)).any(dim=2)  # (2, 20)
        sees = torch.arange(20) >= (0 if place < prefix_len else place)
        assert torch.equal(differs, sees.expand(2, -1))


@pytest.mark.parametrize("prefix_len", [0, 12])
def test_logits_only_where_asked_are_the_same_logits(prefix_len):
    model = make(prefix_len=prefix_len)
    everywhere = model(tokens(3, 20))
    for n in (1, 5, 20):
        assert torch.allclose(model(tokens(3, 20), num_outputs=n), everywhere[:, -n:], atol=1e-12)


PIECES = [[20], [1] * 20, [12, 1, 1, 1, 5], [3, 4, 13]]
BY_PIECES = [(changes, pieces) for changes in ({}, dict(canon=False)) for pieces in PIECES]
BY_PIECES += [(dict(prefix_len=12), pieces) for pieces in ([20], [12] + [1] * 8, [14, 5, 1])]  # the prefix comes whole


@pytest.mark.parametrize("changes, pieces", BY_PIECES)
def test_cached_decoding_equals_the_full_pass(changes, pieces):
    model = make(**changes)
    sequence = tokens(3, 20)
    with torch.no_grad():
        cache = model.new_cache(3, 20)
        logits = torch.cat([model(piece, cache=cache) for piece in sequence.split(pieces, dim=1)], dim=1)
    assert torch.allclose(logits, model(sequence), atol=1e-12)


def test_the_first_head_is_the_last_block_and_the_others_stand_beside_it():
    model = make(n_future=3)
    sequence = tokens(2, 20)
    trunk = model.trunk(sequence)
    assert torch.equal(model.head(trunk, 0), model(sequence))
    for k in (1, 2):
        alone = make(n_future=3)  # the same weights, with future block k put in the last block's place
        alone.h[-1].load_state_dict(model.future[k - 1].state_dict())
        assert torch.allclose(model.head(trunk, k), alone(sequence), atol=1e-12)


def test_gradients_against_finite_differences():
    model = make(n_layer=2, n_embd=8, prefix_len=4)
    sequence = tokens(2, 6)
    loss = lambda: model(sequence, num_outputs=3).pow(2).mean()
    loss().backward()
    for name, p in model.named_parameters():
        direction = torch.randn_like(p)
        slope = (p.grad * direction).sum().item()
        with torch.no_grad():
            p += 1e-6 * direction
            above = loss().item()
            p -= 2e-6 * direction
            below = loss().item()
            p += 1e-6 * direction
        assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-9), name


@torch.no_grad()
def test_canon_starts_as_the_token_plus_the_one_before():
    model = GPT(GPTConfig(**SIZES))
    x = torch.randn(2, 7, 16)
    y = model.h[1].canon(x)
    assert torch.equal(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, 1:], x[:, 1:] + x[:, :-1])


@torch.no_grad()
def test_positions_weigh_little_at_first_but_where_attention_must_find_the_neighbour_by_them():
    for canon, token, position in ((True, 1.0, 0.02), (False, 0.1, 0.1)):
        model = GPT(GPTConfig(50, 60, n_embd=64, canon=canon))
        assert model.wte.weight.std().item() == pytest.approx(token, rel=0.1)
        assert model.wpe.weight.std().item() == pytest.approx(position, rel=0.1)
        assert model.h[0].mlp.c_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.1)
        assert (model.ln_f.weight == (64**-0.5 if canon else 1)).all()


def test_logits_start_at_size_one_and_keys_as_half_a_copy_of_the_queries_both_of_half_the_size():
    torch.manual_seed(7)
    for n_embd in (64, 256):
        logits = GPT(GPTConfig(50, 60, n_embd=n_embd))(torch.randint(50, (8, 60)))
        assert logits.std().item() == pytest.approx(1, rel=0.3)
    for mimetic, alike, size in ((True, 0.5**0.5, 0.5), (False, 0.0, 1.0)):
        c_attn = GPT(GPTConfig(50, 60, mimetic=mimetic)).h[0].attn.c_attn.weight  # (3 C, C)
        query, key, value = c_attn.detach().chunk(3)
        for part, expected in ((query, size), (key, size), (value, 1.0)):
            assert part.std().item() == pytest.approx(expected * 64**-0.5, rel=0.1)
        assert torch.cosine_similarity(query.flatten(), key.flatten(), 0).item() == pytest.approx(alike, abs=0.06)
        assert torch.cosine_similarity(query.flatten(), value.flatten(), 0).item() == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("prefix_len", [0, 27])
def test_initial_weights_hold_nothing_of_the_plan(prefix_len):
    """Which inner node is nearest to what the last two places of the prefix hold, layer by layer? None in particular."""
    torch.manual_seed(5)
    model = GPT(GPTConfig(data.vocab_size(50), 31, prefix_len=prefix_len))
    prefix, path = data.sample_graphs(1000, 2, 5, 50, torch.Generator().manual_seed(6))
    inner = data.trace_arms(prefix, 2, 50)[:, :, 1:4].flatten(1)  # (B, 6): the nodes between start and arms' ends
    x = model.wte(prefix) + model.wpe.weight[: prefix.shape[1]]
    for block in model.h:
        x = block(x, x.shape[1])
        for place in (-2, -1):  # the goal's, and that of `=`
            likeness = (model.wte(inner) @ model.ln_f(x)[:, place, :, None])[:, :, 0]
            nearest = inner.gather(1, likeness.argmax(1, keepdim=True))  # (B, 1)
            assert (nearest == path[:, 1:4]).float().mean(0).max() < 0.27  # a guess is right in a sixth


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="25 tokens, but block_size is 24"):
        make()(tokens(1, 25))
    model = make()
    cache = model.new_cache(1, 24)
    model(tokens(1, 24), cache=cache)
    with pytest.raises(ValueError, match="25 tokens, but block_size is 24"):
        model(tokens(1, 1), cache=cache)

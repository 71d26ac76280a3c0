"""Exercise 5: decoding with a cache reads every token once, and writes what decoding without one would."""

import pytest
import torch

import data
from evaluate import decode, read_prefix, write_on
from model_gpt import GPT, Cache, GPTConfig
from model_mamba import Mamba, MambaConfig
from sizes import draw

L, N = draw("path_len", 4, 6), draw("labels", 20, 30)
V = N + 4
PREFIX, PATH = data.sample_graphs(12, 2, L, N, torch.Generator().manual_seed(draw("graphs", 0, 10**6)))
P = PREFIX.shape[1]


class Accountant:
    """Stands where a model does: its answer depends on all tokens so far and their order; it notes what it reads."""

    def __init__(self):
        self.passes = []

    def new_cache(self, batch_size, max_tokens):
        self.room = max_tokens
        return [torch.zeros(batch_size, dtype=torch.int64)]

    def __call__(self, tokens, num_outputs=None, cache=None):
        self.passes.append(tokens.shape[1])
        total, answers = 0 if cache is None else cache[0], []
        for token in tokens.unbind(dim=1):
            total = (31 * total + token + 1) % 1009
            answers.append(total % V)
        if cache is not None:
            cache[0] = total
        logits = torch.nn.functional.one_hot(torch.stack(answers, dim=1), V).double()
        return logits[:, -(num_outputs or len(answers)) :]


def decode_without_a_cache(model, prefix, length):
    sequence = prefix
    for _ in range(length):
        sequence = torch.cat([sequence, model(sequence)[:, -1:].argmax(dim=2)], dim=1)
    return sequence[:, prefix.shape[1] :]


@pytest.mark.parametrize("length", [1, 2, L])
def test_every_token_is_read_once(length):
    accountant = Accountant()
    written = decode(accountant, PREFIX, length, "next", N)
    assert accountant.passes == [P] + [1] * (length - 1) and accountant.room >= P + length - 1
    assert torch.equal(written, decode_without_a_cache(Accountant(), PREFIX, length))


def test_the_two_halves_of_decoding():
    model, expected = Accountant(), decode_without_a_cache(Accountant(), PREFIX, L)
    first, cache = read_prefix(model, PREFIX, L)
    assert first.shape == (12, 1) and torch.equal(first, expected[:, :1])
    other = torch.zeros_like(first)  # write_on goes on from whatever it is given
    written = write_on(model, other, L, cache)
    assert torch.equal(written[:, :1], other)
    assert torch.equal(written[:, 1:], decode_without_a_cache(Accountant(), torch.cat([PREFIX, other], dim=1), L - 1))


@pytest.mark.parametrize("pieces", [[6], [1] * 6, [3, 1, 2]])
def test_the_gpt_cache_gives_back_all_so_far(pieces):
    config = GPTConfig(vocab_size=V, block_size=8, n_head=2, n_embd=4)
    cache = Cache(3, 8, config, like=torch.zeros(1, dtype=torch.float64))
    k, v = torch.randn(2, 3, 2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # (B, H, T, D)
    end = 0
    for k_piece, v_piece in zip(k.split(pieces, dim=2), v.split(pieces, dim=2)):
        end += k_piece.shape[2]
        all_k, all_v = cache.append(k_piece, v_piece)
        assert torch.equal(all_k, k[:, :, :end]) and torch.equal(all_v, v[:, :, :end]) and cache.length == end


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
@torch.no_grad()
def test_models_write_with_a_cache_what_they_write_without(kind):
    torch.manual_seed(2)
    model = GPT(GPTConfig(V, P + L, 2, 2, 8)) if kind == "gpt" else Mamba(MambaConfig(V, n_layer=2, n_embd=8))
    for p in model.double().parameters():
        p += 0.3 * torch.randn_like(p)
    assert torch.equal(decode(model, PREFIX, L, "next", N), decode_without_a_cache(model, PREFIX, L))
    cache = model.new_cache(12, P)
    parts = [model(part, cache=cache) for part in PREFIX.split([10, 1, 1, P - 12], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), model(PREFIX), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["gpt", "mamba"])
@torch.no_grad()
def test_models_read_every_token_once(kind):
    model = GPT(GPTConfig(V, P + L, 2, 2, 8)) if kind == "gpt" else Mamba(MambaConfig(V, n_layer=2, n_embd=8))
    read, trunk = [], model.trunk
    model.trunk = lambda tokens, *others, **named: read.append(tokens.shape[1]) or trunk(tokens, *others, **named)
    decode(model, PREFIX, L, "next", N)
    assert read == [P] + [1] * (L - 1)

"""Exercise 3: causal attention with token shift and QK-norm, by what it must do. Everything is in float64."""

import pytest
import torch

from model_gpt import Attention, GPTConfig

B, T = 2, 7


def make(n_head=2, n_embd=8, token_shift=True, qk_norm=False, identity=False):
    """An Attention with random weights, or with the identity for each matrix."""
    config = GPTConfig(vocab_size=1, block_size=T, n_head=n_head, n_embd=n_embd, token_shift=token_shift, qk_norm=qk_norm)
    attention = Attention(config).double()
    generator = torch.Generator().manual_seed(4)
    for p in attention.parameters():
        values = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data.copy_(torch.eye(n_embd).repeat(len(p) // n_embd, 1) if identity and p.ndim == 2 else values)
    return attention


def random_input(C=8, seed=1):
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_the_future_is_unseen_and_the_past_is_seen():
    attention, x = make(), random_input()
    before = attention(x, T)
    for place in range(T):
        changed = x.clone()
        changed[:, place] += 1
        after = attention(changed, T)
        assert near(before[:, :place], after[:, :place])
        assert not (before[:, place:] - after[:, place:]).abs().amax(dim=2).lt(1e-6).any()


@pytest.mark.parametrize("num_queries", [1, 3, T])
def test_the_last_outputs_alone_are_the_same(num_queries):
    attention, x = make(), random_input()
    assert near(attention(x, num_queries), attention(x, T)[:, T - num_queries :])


def test_without_a_shift_the_order_of_the_past_does_not_matter():
    attention, x = make(token_shift=False), random_input()
    mixed = torch.cat([x[:, [3, 0, 5, 1, 4, 2]], x[:, -1:]], dim=1)
    assert near(attention(x, 1), attention(mixed, 1))
    assert not near(make()(x, 1), make()(mixed, 1))  # with the shift it does


def test_queries_of_zero_take_the_mean_of_the_values():
    attention, x = make(), random_input()
    to_query, _, to_value = attention.c_attn.weight.data.split(8)
    to_query.zero_()
    v = x @ to_value.T
    v[:, 1:, :4], v[:, 0, :4] = v[:, :-1, :4].clone(), 0  # head 1 looks back: it has the values of the token before
    means = v.cumsum(dim=1) / torch.arange(1, T + 1)[:, None]
    assert near(attention(x, T), means @ attention.c_proj.weight.T)


@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_two_tokens_share_by_the_softmax_of_their_scores(n_head):
    attention, x = make(n_head, token_shift=False, identity=True), random_input()[:, :2]
    D = 8 // n_head
    x0, x1 = (x[:, i].view(B, n_head, D) for i in (0, 1))
    share = torch.sigmoid(((x1 * x0).sum(2) - (x1 * x1).sum(2)) / D**0.5)[:, :, None]  # of token 0, head by head
    assert near(attention(x, 1)[:, 0].view(B, n_head, D), share * x0 + (1 - share) * x1)


@pytest.mark.parametrize("head", range(4))
def test_a_head_keeps_to_its_channels(head):
    attention, x = make(n_head=4, identity=True), random_input()
    before = attention(x, T)
    attention.c_attn.weight.data[2 * head : 2 * head + 2] *= 3  # its two rows of the queries' matrix
    changed = (attention(x, T) - before).abs().amax(dim=(0, 1)) > 1e-6
    assert changed.tolist() == [channel // 2 == head for channel in range(8)]


def test_qk_norm_takes_the_length_of_queries_and_keys_away():
    attention, plain, x = make(qk_norm=True), make(), random_input()
    before, plain_before = attention(x, T), plain(x, T)
    for part in (slice(0, 8), slice(8, 16)):  # the rows of c_attn that make queries, and those that make keys
        attention.c_attn.weight.data[part] *= 1000
        plain.c_attn.weight.data[part] *= 1000
        assert torch.allclose(attention(x, T), before, atol=1e-3)  # not quite equal: a norm adds 1e-5 to what it divides by
        assert not near(plain(x, T), plain_before)
    attention.c_attn.weight.data[16:] *= 2
    assert torch.allclose(attention(x, T), 2 * before, atol=2e-3)  # values keep theirs


def test_an_edge_is_found_by_either_end():
    # Tokens as far apart as can be, in each head's channels: a head looks for tokens like its own, and finds their
    # neighbour.
    attention = make(identity=True)
    a, b, c, d = 50 * torch.eye(4, dtype=torch.float64).repeat(1, 2)
    back, ahead = attention(torch.stack([c, a, b, d, a])[None], 1)[0, 0].split(4)
    assert near(ahead, b[:4])  # what stood after a
    assert near(back, (c + d)[:4] / 2)  # what stood before each of the two

"""Exercise 3: attention, causal but inside the prefix, by what it must do, in float64."""

import pytest
import torch

from model_gpt import Attention, GPTConfig
from sizes import draw

B, T, C = draw("batch", 2, 4), draw("tokens", 7, 11), 4 * draw("channels", 2, 4)


def make(n_head=2, n_embd=C, identity=False, prefix_len=0):
    """An Attention with random weights, or with the identity for each matrix and no biases."""
    config = GPTConfig(1, T, n_head=n_head, n_embd=n_embd, prefix_len=prefix_len)
    attention = Attention(config).double()
    generator = torch.Generator().manual_seed(draw("weights", 0, 10**6))
    for p in attention.parameters():
        values = 0.25 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        same = torch.eye(n_embd).repeat(len(p) // n_embd, 1) if p.ndim == 2 else torch.zeros_like(p)
        p.data.copy_(same if identity else values)
    return attention


def random_input(seed=draw("inputs", 0, 10**6)):
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def differs(a, b):
    """By how much, in words."""
    size = f"{(a - b).abs().max().item():.1g}" if a.shape == b.shape else f"shape: {tuple(a.shape)}, not {tuple(b.shape)}"
    return f"differs by {size}" + (" (is a step in float32?)" if size.endswith(("e-06", "e-07", "e-08")) else "")


@pytest.mark.parametrize("prefix_len", [0, T - 3])
def test_the_future_is_unseen_but_inside_the_prefix_and_the_past_is_seen(prefix_len):
    attention, x = make(prefix_len=prefix_len), random_input()
    before = attention(x, T)
    for place in range(T):
        changed = x.clone()
        changed[:, place] += 1
        after = attention(changed, T)
        first = 0 if place < prefix_len else place  # that sees the place
        change = (before - after).abs().amax(dim=(0, 2)).tolist()  # of each output
        for output in range(T):
            sees, what = output >= first, f"output {output}, token {place}, prefix_len {prefix_len}"
            assert sees or change[output] < 1e-12, f"an output sees what it must not: {what}"
            assert not sees or change[output] > 1e-6, f"an output does not see what it must: {what}"


@pytest.mark.parametrize("prefix_len", [0, T - 3])
@pytest.mark.parametrize("num_outputs", [1, 3, T - 1, T])
def test_the_last_outputs_alone_are_the_same(num_outputs, prefix_len):
    attention, x = make(prefix_len=prefix_len), random_input()
    some, last = attention(x, num_outputs), attention(x, T)[:, T - num_outputs :]
    assert near(some, last), f"num_outputs {num_outputs} {differs(some, last)}"


def test_the_order_of_the_past_does_not_matter():
    attention, x = make(), random_input()
    mixed = torch.cat([x[:, :-1].flip(1), x[:, -1:]], dim=1)
    y, again = attention(x, 1), attention(mixed, 1)
    assert near(y, again), f"with the past in another order, the last output {differs(y, again)}"


def test_queries_of_zero_take_the_mean_of_the_values():
    attention, x = make(), random_input()
    to_query, _, to_value = attention.c_attn.weight.data.split(C)
    to_query.zero_()
    attention.c_attn.bias.data[:C] = 0
    v = x @ to_value.T + attention.c_attn.bias[2 * C :]
    means = v.cumsum(dim=1) / torch.arange(1, T + 1)[:, None]
    y, expected = attention(x, T), means @ attention.c_proj.weight.T + attention.c_proj.bias
    assert near(y, expected), f"the mean of the values {differs(y, expected)}"


def test_queries_are_the_first_part_of_c_attn_and_keys_the_second():
    attention, x = make(1, identity=True), random_input()[:, :2]
    attention.c_attn.weight.data[:C] = torch.eye(C).roll(1, dims=0)  # q_i is x_{i-1}, and k is x
    x0, x1 = x.unbind(dim=1)
    q = x1.roll(1, dims=1)
    share = torch.sigmoid(((q * x0).sum(1) - (q * x1).sum(1)) / C**0.5)[:, None]  # of token 0
    y, expected = attention(x, 1)[:, 0], share * x0 + (1 - share) * x1
    assert near(y, expected), f"with queries unlike keys, the output {differs(y, expected)}: which is which?"


@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_two_tokens_share_by_the_softmax_of_their_scores(n_head):
    attention, x = make(n_head, identity=True), random_input()[:, :2]
    D = C // n_head
    x0, x1 = (x[:, i].view(B, n_head, D) for i in (0, 1))
    share = torch.sigmoid(((x1 * x0).sum(2) - (x1 * x1).sum(2)) / D**0.5)[:, :, None]  # of token 0, head by head
    y, expected = attention(x, 1)[:, 0].view(B, n_head, D), share * x0 + (1 - share) * x1
    assert near(y, expected), f"with {n_head} heads, two tokens' mixture {differs(y, expected)}"


@pytest.mark.parametrize("head", range(4))
def test_a_head_keeps_to_its_channels(head):
    attention, x = make(n_head=4, identity=True), random_input()
    before = attention(x, T)
    D = C // 4
    attention.c_attn.weight.data[D * head : D * head + D] *= 3  # its rows of the queries' matrix
    changed = (attention(x, T) - before).abs().amax(dim=(0, 1)) > 1e-6
    expected = [channel // D == head for channel in range(C)]
    assert changed.tolist() == expected, f"other channels than {D * head} to {D * head + D - 1} belong to head {head}"


@pytest.mark.parametrize("prefix_len", [0, 4])
def test_the_last_outputs_with_a_cache_are_the_same(prefix_len):
    """A made cache, which keeps what it is given: Cache.append itself is asked for in exercise 5."""

    class Keep:
        k = v = torch.empty(B, 2, 0, C // 2, dtype=torch.float64)

        def append(self, k, v):
            self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
            return self.k, self.v

    attention, x, cache = make(prefix_len=prefix_len), random_input(), Keep()
    parts = [attention(part, part.shape[1], cache) for part in x.split([4, 1, T - 5], dim=1)]
    y, expected = torch.cat(parts, dim=1), attention(x, T)
    assert near(y, expected), f"with a cache, the output {differs(y, expected)}"

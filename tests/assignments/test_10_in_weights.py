"""Exercise 10: one graph, known by heart: the first step is found, even of paths that the model was never told."""

import time

import torch

import data
from evaluate import decode
from model_gpt import GPT
from model_mamba import Mamba
from sizes import draw
from solutions import in_weights_prompts, memorise

DEG, L, N, HELD_OUT = 60, 4, 181, 12


def arms_of(seed):
    """The arms of one random graph: (DEG, L)."""
    prefix, _ = data.sample_graphs(1, DEG, L, N, torch.Generator().manual_seed(seed))
    return data.trace_arms(prefix, DEG, N)[0]


def right(model, arms):
    """Which tokens of each arm the model writes, asked by the arm's goal: (DEG, L), bool."""
    with torch.no_grad():
        return decode(model, in_weights_prompts(arms, N), L, "next", N) == arms


def test_a_prompt_holds_start_and_goal_and_no_edge():
    arms = arms_of(1)
    expected = [[arm[0], arm[-1], N + data.EQUALS] for arm in arms.tolist()]
    assert in_weights_prompts(arms, N).tolist() == expected


class Read:
    """Notes all sequences of tokens that any embedding reads in training while the body runs."""

    def __enter__(self):
        self.rows = []
        note = lambda module, given: self.rows.extend(given[0].tolist()) if self.is_tokens(module, given) else None
        self.hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
        return self

    def is_tokens(self, module, given):
        return isinstance(module, torch.nn.Embedding) and given[0].ndim == 2 and torch.is_grad_enabled()

    def __exit__(self, *fault):
        self.hook.remove()


def test_the_graph_is_in_the_weights():
    arms, began = arms_of(draw("graph", 0, 10**6)), time.monotonic()
    with Read() as read:
        trained = memorise(arms, HELD_OUT, N)
    assert read.rows and type(trained) in (GPT, Mamba), "a GPT or a Mamba of the lab is to be trained, and handed back"
    model = type(trained)(trained.config)  # its weights alone, so that nothing else can know
    model.load_state_dict(trained.state_dict())
    rows, held_out = [set(row) for row in read.rows], arms[-HELD_OUT:].tolist()
    longest = max(len(set(arm[1:]) & row) for row in rows for arm in held_out)
    assert longest <= 2, "a held-out path was shown in training: edges may be, one edge a row"
    asked = any({arm[0], arm[-1]} <= row for row in rows for arm in held_out)
    assert not asked, "a held-out arm's start and goal were shown together: what that asks, the model must never be told"
    assert time.monotonic() - began < 120, "memorise took longer than two minutes"
    first, whole = right(model, arms)[:, 1], right(model, arms).all(dim=1)
    assert first[:-HELD_OUT].all() and whole[:-HELD_OUT].all(), "a path that it was told is not written right"
    share = first[-HELD_OUT:].double().mean().item()  # a guess is right in one of sixty
    assert share >= 0.5, f"the first step is right in {share:.0%} of the paths that it was not told; half is asked for"
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not right(model, arms).all(dim=1).any(), "without its weights it knows the paths still"

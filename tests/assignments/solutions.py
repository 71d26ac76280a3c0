"""The exercises whose answers have no place in the lab's own files: ASSIGNMENTS.md sets them.

In a student's folder, which blank.py makes, the bodies are taken out.
"""

from types import SimpleNamespace

import torch

import data
import train
from model_gpt import GPT, GPTConfig

# ---------------------------------------------------------------------------------------------------------
# Exercise 1


def is_path_star(prefix, path, deg, path_len, num_nodes):
    """Is this one example a path-star graph G(deg, path_len) over `num_nodes` labels, with the path that it asks for?

    Arguments: prefix and path, lists of int, one row each of what data.sample_graphs returns.
    Returns: bool; False, not an exception, whatever the lists' lengths and numbers are.
    """
    num_edges = deg * (path_len - 1)
    if len(prefix) != 3 * num_edges + 3 or len(path) != path_len:
        return False
    *tokens, start, goal, equals = prefix
    pipe, slash = num_nodes + data.PIPE, num_nodes + data.SLASH
    if tokens[2::3] != [pipe] * (num_edges - 1) + [slash] or equals != num_nodes + data.EQUALS:
        return False
    parents, children = tokens[0::3], tokens[1::3]
    if not all(0 <= node < num_nodes for node in parents + children):
        return False
    # Arms neither meet nor come back to the start: every edge leads to a node of its own, and none to the start.
    if len(set(children)) != num_edges or start in children:
        return False
    arms = [[start, child] for parent, child in zip(parents, children) if parent == start]
    for arm in arms:
        while len(arm) <= path_len and arm[-1] in parents:
            arm.append(children[parents.index(arm[-1])])
    # Right lengths leave nothing over: the edges on the arms are as many as there are, so none forks off or lies apart.
    return len(arms) == deg and all(len(arm) == path_len for arm in arms) and path in arms and path[-1] == goal


# ---------------------------------------------------------------------------------------------------------
# Exercise 6


@torch.no_grad()
def cheat_rate(model, prefix, path, num_nodes):
    """Put the model on a wrong arm's first node: how often does it write all further inner nodes of that arm, token by
    token, each time reading back what it wrote itself? The last place does not count, for there a model that cheats may
    copy the goal from the prefix.

    Arguments: model(tokens, num_outputs) -> logits, as model_gpt.GPT; prefix (B, P) and path (B, l), int64, with at
        least two arms and l of 4 or more. Of several wrong arms, take any one.
    Returns: a float from 0 to 1, a share of the B graphs.
    """
    l = path.shape[1]
    deg = (prefix.shape[1] - 3) // 3 // (l - 1)
    arms = data.trace_arms(prefix, deg, num_nodes)  # (B, deg, l)
    is_wrong = arms[:, :, -1] != path[:, -1:]  # (B, deg): arms that end elsewhere than at the goal
    wrong = arms[torch.arange(len(arms)), is_wrong.int().argmax(dim=1)]  # (B, l)
    sequence = torch.cat([prefix, wrong[:, :2]], dim=1)
    for _ in range(l - 3):
        sequence = torch.cat([sequence, model(sequence, num_outputs=1).argmax(dim=2)], dim=1)
    return (sequence[:, prefix.shape[1] :] == wrong[:, :-1]).all(dim=1).double().mean().item()


# ---------------------------------------------------------------------------------------------------------
# Exercise 9


def masked_layout(prefix, path, num_nodes, share, generator):
    """Next-token prediction with a forgetful teacher: each token of the path that `next` would reveal is `$` instead
    with probability `share`, drawn for each on its own. What must be said stays the same.

    Arguments: prefix (B, P) and path (B, l), int64; share, from 0 to 1; generator, a torch.Generator.
    Returns: inputs (B, P + l - 1) and targets (B, l, 1), int64, as data.layout. The arguments stay as they are.
    """
    revealed = path[:, :-1]
    hidden = torch.rand(revealed.shape, generator=generator) < share
    return torch.cat([prefix, revealed.masked_fill(hidden, num_nodes + data.DUMMY)], dim=1), path[:, :, None]


# ---------------------------------------------------------------------------------------------------------
# Exercise 10


def in_weights_prompts(arms, num_nodes):
    """The prefixes that ask for each arm of one graph without showing an edge of it: start, goal, `=`.

    Arguments: arms (deg, l), int64, all from one start. Returns: (deg, 3), int64.
    """
    equals = torch.full_like(arms[:, 0], num_nodes + data.EQUALS)
    return torch.stack([arms[:, 0], arms[:, -1], equals], dim=1)


def memorise(arms, held_out, num_nodes, seed=1):
    """Train a small model by next-token prediction until it has one graph in its weights.

    Each step may show every edge, forwards and backwards, one edge a row, in a form of your choice, and every path,
    after its prompt, but those of the last `held_out` arms: what the model is asked about these, it was never told.

    Arguments: arms (deg, l), int64. Returns: the model, for evaluate.decode. Two minutes on one thread are the limit;
    seconds will do.
    """
    torch.manual_seed(seed)
    told = arms[: len(arms) - held_out]
    path_inputs, path_targets = data.layout("next", in_weights_prompts(told, num_nodes), told, num_nodes)
    parents, children = arms[:, :-1].flatten(), arms[:, 1:].flatten()  # (E,)
    onward, back = (torch.full_like(parents, num_nodes + mark) for mark in (data.PIPE, data.SLASH))
    edge_inputs = torch.cat([torch.stack([parents, onward], dim=1), torch.stack([children, back], dim=1)])  # (2 E, 2)
    edge_targets = torch.cat([children, parents])[:, None, None]  # (2 E, 1, 1): `a |` is followed by b, and `b /` by a

    s = SimpleNamespace(steps=300, warmup=10, decay=0.3)
    sizes = dict(n_layer=2, n_head=2, n_embd=64, canon=False)
    model = GPT(GPTConfig(data.vocab_size(num_nodes), path_inputs.shape[1], **sizes))
    with torch.no_grad():  # attention starts as the identity: what it finds comes back as it is, for the next look
        for block in model.h:
            block.attn.c_attn.weight.copy_(torch.eye(64).repeat(3, 1))
            block.attn.c_proj.weight.copy_(torch.eye(64))
            block.mlp.c_proj.weight.zero_()
        torch.nn.init.orthogonal_(model.wte.weight)
        torch.nn.init.normal_(model.wpe.weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(s.steps):
        train.add_gradients(model, path_inputs, path_targets)
        train.add_gradients(model, edge_inputs, edge_targets)
        optimizer.param_groups[0]["lr"] = 5e-3 * train.schedule(step, s)
        optimizer.step()
        optimizer.zero_grad()
    return model

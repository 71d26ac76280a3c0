"""Make mamba_reference.npz: weights, tokens and logits of a small Mamba, straight from the paper's formulas.

    python tests/make_mamba_reference.py          writes the file anew, the same numbers every time

An independent implementation to check model_mamba.py against: numpy only, float64, one number at a time,
nothing shared and nothing fast. The names of the weights are those of model_mamba.Mamba.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("mamba_reference.npz")
V, C, E, N, WIDTH, RANK, LAYERS = 11, 6, 12, 4, 4, 2, 2  # vocabulary, n_embd, inner channels, d_state, d_conv, dt_rank
BATCH, LENGTH = 2, 13


def draw_weights(rng):
    """Random weights of about the sizes that a trained model has: a dict of float64 arrays."""
    weights = {"embedding.weight": rng.normal(size=(V, C)), "norm_f.weight": rng.normal(1, 0.2, size=C)}
    for i in range(LAYERS):
        layer = {
            "norm.weight": rng.normal(1, 0.2, size=C),
            "mixer.in_proj.weight": rng.normal(size=(2 * E, C)) / np.sqrt(C),
            "mixer.conv1d.weight": rng.normal(size=(E, 1, WIDTH)) / 2,
            "mixer.conv1d.bias": rng.normal(size=E) / 2,
            "mixer.x_proj.weight": rng.normal(size=(RANK + 2 * N, E)) / np.sqrt(E),
            "mixer.dt_proj.weight": rng.normal(size=(E, RANK)),
            "mixer.dt_proj.bias": rng.normal(-1, 1, size=E),
            "mixer.A_log": rng.normal(0, 0.7, size=(E, N)),
            "mixer.D": rng.normal(size=E),
            "mixer.out_proj.weight": rng.normal(size=(C, E)) / np.sqrt(E),
        }
        weights.update({f"layers.{i}.{name}": value for name, value in layer.items()})
    return weights


def silu(v):
    return v / (1 + np.exp(-v))


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2) + 1e-5) * weight


def mixer(xs, w):
    """The block of figure 3 on one sequence: xs, a list of T vectors (C,) -> a list of T vectors (C,)."""
    inner = [w["mixer.in_proj.weight"] @ x for x in xs]  # (2 E,): the first half goes on, the second half gates
    A = -np.exp(w["mixer.A_log"])  # (E, N)
    h = np.zeros((E, N))
    outputs = []
    for t in range(len(xs)):
        u = w["mixer.conv1d.bias"].copy()  # (E,): the convolution, whose last weight belongs to the present
        for back in range(min(WIDTH, t + 1)):
            u += w["mixer.conv1d.weight"][:, 0, WIDTH - 1 - back] * inner[t - back][:E]
        u = silu(u)
        selected = w["mixer.x_proj.weight"] @ u
        B, Cc = selected[RANK : RANK + N], selected[RANK + N :]
        dt = np.log1p(np.exp(w["mixer.dt_proj.weight"] @ selected[:RANK] + w["mixer.dt_proj.bias"]))  # softplus, (E,)
        y = np.zeros(E)
        for e in range(E):
            for n in range(N):
                h[e, n] = np.exp(dt[e] * A[e, n]) * h[e, n] + dt[e] * B[n] * u[e]
                y[e] += Cc[n] * h[e, n]
            y[e] += w["mixer.D"][e] * u[e]
        outputs.append(w["mixer.out_proj.weight"] @ (y * silu(inner[t][E:])))
    return outputs


def logits(tokens, weights):
    """tokens (B, T), integers -> (B, T, V)."""
    result = np.zeros((*tokens.shape, V))
    for b, sequence in enumerate(tokens):
        xs = [weights["embedding.weight"][token] for token in sequence]
        for i in range(LAYERS):
            start = f"layers.{i}."
            w = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
            ys = mixer([rms_norm(x, w["norm.weight"]) for x in xs], w)
            xs = [x + y for x, y in zip(xs, ys)]
        for t, x in enumerate(xs):
            result[b, t] = weights["embedding.weight"] @ rms_norm(x, weights["norm_f.weight"])
    return result


def make():
    """Returns: everything that the file holds, a dict of arrays."""
    rng = np.random.default_rng(2312)
    weights = draw_weights(rng)
    tokens = rng.integers(V, size=(BATCH, LENGTH))
    return {"tokens": tokens, "logits": logits(tokens, weights), **weights}


if __name__ == "__main__":
    np.savez(FILE, **make())
    print(f"wrote {FILE.name}")

"""Muon: momentum whose step is made orthogonal (Jordan et al. 2024), for the matrices inside a network's blocks.

The gradient of a matrix is dominated by a few directions, those that already help; an orthogonal step moves along
all directions alike. On a plateau, what will help is still faint among them.
"""

import torch


class Muon(torch.optim.Optimizer):
    """The optimiser. Matrices of equal shape are made orthogonal in one batch, which costs less than one by one.

    A parameter group's `pieces` is the number of matrices that each of its parameters holds, stacked by rows.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum, pieces=1))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                updates = []
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates += p.grad.lerp(momentum, group["momentum"]).chunk(group["pieces"])  # Nesterov's look ahead
                updates = orthogonalize(torch.stack(updates))  # (K, rows, columns)
                rows, columns = updates.shape[1:]
                updates *= group["lr"] * max(1, rows / columns) ** 0.5
                for p, update in zip(params, updates.unflatten(0, (len(params), -1)).flatten(1, 2)):
                    p.sub_(update)


def orthogonalize(G):
    """The orthogonal matrix U V^T nearest to each G = U S V^T, roughly (Newton-Schulz iteration, Jordan et al. 2024).

    Five steps of an odd polynomial drive every singular value to between 0.7 and 1.2, in matrix products alone.
    Arguments: G (K, rows, columns), float. Returns: the same shape.
    """
    if G.shape[1] > G.shape[2]:
        return orthogonalize(G.mT).mT
    X = G / (G.norm(dim=(1, 2), keepdim=True) + 1e-7)  # so that no singular value is above 1
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X

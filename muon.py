"""Muon: momentum with orthogonal steps (Jordan et al. 2024), for the matrices in a model's blocks.

A few directions dominate a matrix's gradient. A step whose singular values are all 1 goes equally
far in all, and so, on a plateau, also along the weak direction that leads out of it. Such steps
make the matrices grow, and the larger a matrix, the less a step turns it; weight decay limits that.
"""

import torch


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, and AdamW's weight decay (Liu et al. 2025, arXiv 2502.16982).

    Parameters are matrices. A group's `pieces`: how many each parameter holds, stacked by rows.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, pieces=1)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            for shape in dict.fromkeys(p.shape for p in learning):  # as a batch, for speed
                params = [p for p in learning if p.shape == shape]
                updates = []
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    average = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates += p.grad.lerp(average, group["momentum"]).chunk(group["pieces"])
                updates = orthogonalize(torch.stack(updates))  # (K, rows, columns)
                updates *= group["lr"] * max(1, updates.shape[1] / updates.shape[2]) ** 0.5
                for p, update in zip(params, updates.unflatten(0, (len(params), -1)).flatten(1, 2)):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)


def orthogonalize(G):
    """The orthogonal U V^T nearest to each of K matrices G = U S V^T, roughly: (K, rows, columns).

    Five Newton-Schulz steps (Jordan et al.) bring all but the smallest singular values to 0.7–1.2.
    """
    if G.shape[1] > G.shape[2]:
        return orthogonalize(G.mT).mT
    X = G / (G.norm(dim=(1, 2), keepdim=True) + 1e-7)  # so that no singular value is above 1
    for _ in range(5):  # an odd polynomial of the singular values, by matrix products alone
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X

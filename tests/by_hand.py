"""Eq. 6-9 once more, with plain loops and sets."""

from collections.abc import Mapping, Sequence

import numpy as np


def metrics_by_hand(
    entropy: np.ndarray, masks: np.ndarray, norms: Sequence[Mapping[str, float]], b: float
) -> dict[str, float]:
    """The metrics of ``entropy [M + 1, N, n]``, foreground ``masks [N, n]`` and a training's
    ``step_norms``.
    """
    epochs, samples, units = entropy.shape
    sets = [[set() for _ in range(samples)] for _ in range(epochs)]
    n_bg = np.zeros(samples)
    for epoch in range(epochs):
        for i in range(samples):
            level = entropy[epoch, i][~masks[i]].mean()
            points = {u for u in range(units) if level - entropy[epoch, i, u] > b}
            sets[epoch][i] = {u for u in points if masks[i, u]}
            n_bg[i] = len(points - sets[epoch][i])
    path = np.cumsum([0, *(np.sqrt(sum(v**2 for v in step.values())) for step in norms[1:])])
    path /= np.sqrt(sum(v**2 for v in norms[0].values()))
    ever = [set().union(*(sets[epoch][i] for epoch in range(1, epochs))) for i in range(samples)]
    richest = [
        max(range(1, epochs), key=lambda epoch, i=i: (len(sets[epoch][i]), -epoch))
        for i in range(samples)
    ]
    distances = [path[richest[i]] for i in range(samples) if ever[i]]
    kept = [len(sets[-1][i]) / len(ever[i]) for i in range(samples) if ever[i]]
    return {
        "n_fg": np.mean([len(s) for s in sets[-1]]),
        "n_bg": n_bg.mean(),
        "d_mean": np.mean(distances) if distances else np.nan,
        "d_var": np.var(distances) if distances else np.nan,
        "rho": np.mean(kept) if kept else np.nan,
        "undefined rho": samples - len(kept),
    }

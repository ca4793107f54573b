"""Rows with planted sparse directions, for tests of dictionaries."""

import numpy as np


def planted(n=6000, d=24, latents=40, active=3, seed=0):
    """Rows made of a few of many sparse directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((latents, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((n, latents))
    for row in codes:
        row[rng.choice(latents, active, replace=False)] = rng.uniform(1, 2, active)
    return (codes @ directions + 3.0).astype(np.float32), directions

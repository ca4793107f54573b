"""Rows with planted sparse directions, and stand-ins for trained dictionaries."""

from types import SimpleNamespace

import numpy as np
import torch


def planted(n=6000, d=24, latents=40, active=3, seed=0):
    """Rows made of a few of many sparse directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((latents, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((n, latents))
    for row in codes:
        row[rng.choice(latents, active, replace=False)] = rng.uniform(1, 2, active)
    return (codes @ directions + 3.0).astype(np.float32), directions


def stand_in(w_dec, encode=None, decode=None):
    """A dictionary with given decoder rows and any functions of tensors in the place of sae-lens' own."""
    from layerprobe import sae

    w_dec = torch.as_tensor(np.asarray(w_dec, dtype=np.float32))
    cfg = SimpleNamespace(d_sae=w_dec.shape[0], d_in=w_dec.shape[1])
    return sae.Dictionary(
        SimpleNamespace(
            cfg=cfg,
            W_dec=w_dec,
            encode=encode or torch.relu,
            decode=decode or (lambda codes: codes @ w_dec),
            run_time_activation_norm_fn_in=lambda rows: rows,
        )
    )


def encoded(dictionary, rows):
    """Activations as a sparse matrix, without a progress bar."""
    from layerprobe import sae

    return sae.encode(dictionary, rows)


def quality(dictionary, rows, groups=None, codes=None):
    """`evaluate` without a progress bar; by default each row is an example."""
    from layerprobe import sae

    codes = encoded(dictionary, rows) if codes is None else codes
    groups = np.arange(len(rows)) if groups is None else groups
    return sae.evaluate(dictionary, rows, codes, groups)


def at_median_ratio(joint, codes):
    """Which latents have the median ratio of norms, which leaves their dominant side to rounding."""
    sizes = np.linalg.norm(joint.decoder.astype(np.float64), axis=2)
    active = np.diff(codes.tocsc().indptr)
    both = active > 0
    ratios = np.log(sizes[:, 1] / sizes[:, 0])
    median = np.median(np.repeat(ratios[both], active[both]))
    return np.abs(ratios - median) < 1e-9

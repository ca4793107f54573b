"""Small learners in double precision, and tasks for them."""

import torch
from torch import nn

from layerprobe.metalearning import Learner, State, Task


def small_learner(blocks=2, width=5, inputs=4, ways=3, seed=0, dtype=torch.float64):
    """A map of the inputs, and blocks of a linear map and tanh."""
    torch.manual_seed(seed)
    parts = [nn.Linear(inputs, width), *(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(blocks))]
    learner = Learner([part.to(dtype) for part in parts], width=width, ways=ways, seed=seed)
    learner._head = {name: torch.randn_like(value) for name, value in learner._head.items()}
    return learner


def small_task(ways=3, shots=3, queries=4, inputs=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def half(n):
        labels = torch.arange(ways).repeat(n)
        return State(0, torch.randn(ways * n, inputs, generator=generator, dtype=dtype)), labels

    return Task(*half(shots), *half(queries))


def with_gradients(parameters, names):
    return {name: value.clone().requires_grad_(name in names) for name, value in parameters.items()}

"""Attention-based multiple-instance learning (Ilse et al. 2018): a classifier of bags of embeddings.

A training sees one bag a step, classes in turn, the bags of a class in an order drawn from the seed; every arm gets the
same number of steps. Nothing depends on how many processes there are: each training runs in one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hdtrain.config.slides import MilConfig
from hdtrain.distributed.seeds import generator


class AttentionMil(nn.Module):
    """z = Σ a_k h_k with a = softmax(wᵀ(tanh(V h_k) ⊙ σ(U h_k))), eq. 7 and 9; a linear layer on z.

    Args:
        mean: of the features over the training instances.
        std: likewise; what does not vary stays as it is.
        num_classes: of bags.
        config: widths and dropout.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, num_classes: int, config: MilConfig):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, torch.ones_like(std)))
        self.embed = nn.Sequential(nn.Linear(len(mean), config.hidden), nn.ReLU(), nn.Dropout(config.dropout))
        self.tanh = nn.Sequential(nn.Linear(config.hidden, config.attention), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(config.hidden, config.attention), nn.Sigmoid())
        self.weight = nn.Linear(config.attention, 1)
        self.classify = nn.Linear(config.hidden, num_classes)

    def forward(self, instances: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " n"]]:
        """Logits of one bag, and the attention that its instances got (it sums to 1)."""
        hidden = self.embed((instances - self.mean) / self.std)
        attention = self.weight(self.tanh(hidden) * self.gate(hidden)).squeeze(1).softmax(0)
        return self.classify(attention @ hidden), attention


def train_mil(
    bags: Sequence[Float32[np.ndarray, "n d"]],
    labels: Sequence[int],
    num_classes: int,
    config: MilConfig,
    seed: int,
) -> AttentionMil:
    """Train on bags; the same weights for the same bags and seed.

    Args:
        bags: instances of each.
        labels: of each.
        num_classes: of the classifier; a class without bags gets no turn.
        config: of the training.
        seed: of weights, order and dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttentionMil(*_moments(bags), num_classes, config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        model.train()
        for step, number in enumerate(_order(labels, config.steps, seed)):
            logits, _ = model(_some(bags[number], config.max_instances, seed, step))
            loss = nn.functional.cross_entropy(logits, torch.tensor(labels[number]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def probabilities(model: AttentionMil, bags: Sequence[Float32[np.ndarray, "n d"]]) -> Float[np.ndarray, "b k"]:
    """Softmax for each bag, all of its instances looked at."""
    return np.stack([model(torch.from_numpy(bag))[0].softmax(0).numpy() for bag in bags])


def _moments(bags: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the features; every bag counts the same."""
    first = np.mean([bag.mean(axis=0, dtype=np.float64) for bag in bags], axis=0)
    second = np.mean([((bag - first) ** 2).mean(axis=0) for bag in bags], axis=0)
    return torch.tensor(first, dtype=torch.float32), torch.tensor(np.sqrt(second), dtype=torch.float32)


def _order(labels: Sequence[int], steps: int, seed: int) -> list[int]:
    """The bag of each step: classes in turn, the bags of a class all once before one comes again."""
    rng = np.random.default_rng([seed, 0])
    of_class = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
    queues: list[list[int]] = [[] for _ in of_class]
    order = []
    for step in range(steps):
        turn = step % len(of_class)
        if not queues[turn]:
            queues[turn] = rng.permutation(of_class[turn]).tolist()
        order.append(queues[turn].pop())
    return order


def _some(bag: np.ndarray, limit: int, seed: int, step: int) -> Tensor:
    instances = torch.from_numpy(bag)
    if len(bag) <= limit:
        return instances
    return instances[torch.randperm(len(bag), generator=generator(seed, "instances", step))[:limit]]

"""Evolve which blocks of a network learn, and how fast, in a training loop of your own."""

import torch
from sklearn.datasets import load_digits

from biotune.evolution import BioTune, FineTunePlan

images, labels = map(torch.tensor, load_digits(return_X_y=True))


def validation_score(plan: FineTunePlan) -> float:
    """Train as a plan says: each block has a rate of its own, what is frozen has none."""
    torch.manual_seed(0)
    blocks = {"stem": torch.nn.Linear(64, 32), "head": torch.nn.Linear(32, 10)}
    network = torch.nn.Sequential(blocks["stem"], torch.nn.ReLU(), blocks["head"]).double()
    groups = [{"params": blocks[b].parameters(), "lr": 0.003 * (plan[b] or 0)} for b in blocks]
    optimizer = torch.optim.Adam(groups)
    for batch in torch.arange(800).split(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    return float((network(images[800:]).argmax(dim=1) == labels[800:]).double().mean())


search = BioTune(["stem", "head"], population=4, generations=2, elites=1)
while not search.done:
    for candidate in search.ask():
        search.tell(candidate, fitness=1 - validation_score(candidate.plan))
print(f"{1 - search.best.fitness:.1%} are right with {search.best.plan}")

"""The evolutionary search over fine-tuning plans; needs numpy and nothing else.

>>> from biotune.evolution import BioTune
>>> search = BioTune(["stem", "layer1", "head"], population=4, generations=1, elites=1)
>>> candidate = search.ask()[0]
>>> candidate.origin, str(candidate.plan)
('recipe:full 1x', 'stem=1x layer1=1x head=1x')
"""

from biotune.evolution.candidate import Candidate, Role
from biotune.evolution.genome import Genome, HeadMode, decode
from biotune.evolution.optimizer import BioTune, ReproductionMode
from biotune.evolution.protocol import Optimizer
from biotune.evolution.recipes import Recipe, recipe_grid, recipes
from biotune.evolution.screening import Screening
from biotune.plan import Evaluation, FineTunePlan

__all__ = [
    "BioTune",
    "Candidate",
    "Evaluation",
    "FineTunePlan",
    "Genome",
    "HeadMode",
    "Optimizer",
    "Recipe",
    "ReproductionMode",
    "Role",
    "Screening",
    "decode",
    "recipe_grid",
    "recipes",
]

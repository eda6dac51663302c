"""The genome of a fine-tuning plan, and how it is read (ν, ε_f, S and W of Davila et al., IEEE
Access 13, 2025, doi 10.1109/ACCESS.2025.3587524)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from biotune.plan import FineTunePlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

HeadMode = Literal["evolved", "trainable"]
"""``evolved``: the last block is a gene like the others and may be frozen, as published.
``trainable``: the last block is always trained, and its gene sets only its rate."""

HEAD_MODES: tuple[HeadMode, ...] = get_args(HeadMode)

# A block at exactly 0.1× has importance 0, which no threshold is below. This importance is above
# 0 and still reads as 0.1× in three significant digits.
_LOWEST_IMPORTANCE = 0.001


@dataclass(frozen=True, eq=False)
class Genome:
    """One importance per block and the freezing threshold: ν = [ν₀ … ν_B, ε_f].

    A block is trained if its importance is above the threshold, and the more important it is, the
    faster it learns. Immutable, hashable, and equal to any genome with the same genes.

    Args:
        importances: shape [B+1], each in [0, 1], in the forward order of the blocks. Copied.
        threshold: the importance at and below which a block is frozen, in [0, 1].

    Raises:
        ValueError: for another shape, no importance at all, or a gene outside [0, 1].

    >>> Genome([0.2, 0.9], 0.5).to_list()
    [0.2, 0.9, 0.5]
    """

    importances: NDArray[np.float64]
    threshold: float

    def __init__(self, importances: ArrayLike, threshold: float) -> None:
        values = np.array(importances, dtype=np.float64)
        if values.ndim != 1 or not values.size:
            raise ValueError(f"importances must be of shape [blocks], got shape {values.shape}")
        # Written so that NaN, for which every comparison is false, is refused too.
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"importances must lie in [0, 1], got {values.tolist()}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold must lie in [0, 1], got {threshold!r}")
        values.flags.writeable = False
        object.__setattr__(self, "importances", values)
        object.__setattr__(self, "threshold", float(threshold))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self.to_list() == other.to_list()

    def __hash__(self) -> int:
        return hash(tuple(self.to_list()))

    def __repr__(self) -> str:
        return f"Genome({self.importances.tolist()!r}, {self.threshold!r})"

    def __reduce__(self) -> tuple[type[Genome], tuple[NDArray[np.float64], float]]:
        # Arrays come back from a pickle writeable; building it anew keeps the genome immutable.
        return (Genome, (self.importances, self.threshold))

    @property
    def genes(self) -> NDArray[np.float64]:
        """All genes as one new vector, shape [B+2]: the importances, then the threshold."""
        return np.append(self.importances, self.threshold)

    def to_list(self) -> list[float]:
        """The genes as plain floats, for JSON; :meth:`from_genes` reads them back."""
        return [*self.importances.tolist(), self.threshold]

    @classmethod
    def from_genes(cls, genes: ArrayLike) -> Genome:
        """The genome of a gene vector.

        Args:
            genes: shape [B+2], each in [0, 1]: the importances, then the threshold.

        Raises:
            ValueError: for fewer than two genes, another shape, or a gene outside [0, 1].
        """
        values = np.asarray(genes, dtype=np.float64)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"genes must be of shape [blocks + 1], got shape {values.shape}")
        return cls(values[:-1], float(values[-1]))

    @classmethod
    def random(cls, rng: np.random.Generator, n_blocks: int) -> Genome:
        """A genome whose genes are uniform on [0, 1); it may train nothing.

        Raises:
            ValueError: if ``n_blocks`` is not at least 1.
        """
        if n_blocks < 1:
            raise ValueError(f"a genome needs at least one block, got {n_blocks}")
        return cls.from_genes(rng.random(n_blocks + 1))

    @classmethod
    def random_viable(
        cls, rng: np.random.Generator, n_blocks: int, head: HeadMode = "evolved"
    ) -> Genome:
        """A random genome, redrawn until it trains at least one block.

        Raises:
            ValueError: if ``n_blocks`` is not at least 1, or for an unknown ``head``.
        """
        while True:  # one draw in B+2 trains nothing, so this ends soon
            genome = cls.random(rng, n_blocks)
            if genome.is_viable(head):
                return genome

    def trained(self, head: HeadMode = "evolved") -> NDArray[np.bool_]:
        """Which blocks are trained, shape [B+1]: the selection mask S.

        Raises:
            ValueError: for an unknown ``head``.
        """
        if head not in HEAD_MODES:
            raise ValueError(f"head must be one of {HEAD_MODES}, got {head!r}")
        mask: NDArray[np.bool_] = self.importances > self.threshold
        if head == "trainable":
            mask[-1] = True
        return mask

    def is_viable(self, head: HeadMode = "evolved") -> bool:
        """Whether at least one block is trained.

        Raises:
            ValueError: for an unknown ``head``.
        """
        return bool(self.trained(head).any())


def decode(genome: Genome, blocks: Sequence[str], head: HeadMode = "evolved") -> FineTunePlan:
    """The plan that a genome stands for: η = S · W with W = 10^(2(ν − 0.5)) ∈ [0.1, 10].

    Multipliers are rounded to three significant digits, so that genomes which mean the same in
    practice are the same plan.

    Args:
        genome: one importance for each of ``blocks``.
        blocks: the names of the blocks in forward order, the classifier head last.
        head: see :data:`HeadMode`.

    Raises:
        ValueError: if the numbers of blocks differ, a name occurs twice, or ``head`` is unknown.

    >>> decode(Genome([0.2, 0.5, 1.0], 0.3), ["stem", "layer1", "head"])
    FineTunePlan({'stem': None, 'layer1': 1.0, 'head': 10.0})
    """
    if len(blocks) != genome.importances.size:
        raise ValueError(
            f"the genome has {genome.importances.size} importances, got {len(blocks)} blocks"
        )
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"the names of the blocks must differ, got {list(blocks)}")
    multipliers = 10 ** (2 * (genome.importances - 0.5))
    return FineTunePlan(
        {
            block: float(f"{multiplier:.3g}") if is_trained else None
            for block, multiplier, is_trained in zip(
                blocks, multipliers, genome.trained(head), strict=True
            )
        }
    )


def encode(multipliers: Mapping[int, float], n_blocks: int, head: HeadMode = "evolved") -> Genome:
    """A genome that trains just these blocks; beside the head at 1× where that is always trained.

    Args:
        multipliers: position of a block → lr multiplier, 0.1 to 10; at least one.
        n_blocks: B+1, the number of blocks.
        head: see :data:`HeadMode`.

    >>> decode(encode({1: 5.0}, 3), ["stem", "layer1", "head"])
    FineTunePlan({'stem': None, 'layer1': 5.0, 'head': None})
    """
    importances = np.zeros(n_blocks)
    for block, multiplier in multipliers.items():
        importances[block] = max(0.5 + np.log10(multiplier) / 2, _LOWEST_IMPORTANCE)
    # Half-way between what is frozen and what is trained, as far as possible from a change of mask.
    threshold = min(importances[block] for block in multipliers) / 2
    if head == "trainable" and n_blocks - 1 not in multipliers:
        importances[-1] = 0.5
    return Genome(importances, threshold)

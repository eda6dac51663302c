"""Which images must go because the same picture occurs twice."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from biotune.data.splits import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from biotune.data.prepared import Sample

_LATER: Final[dict[str, int]] = {split: place for place, split in enumerate(SPLITS)}


def contradictions(digests: Sequence[bytes], samples: Sequence[Sample]) -> dict[int, str]:
    """Images of which a copy has another label: which is right, nobody knows.

    Args:
        digests: equal for equal pictures, ``[N]``.
        samples: ``[N]``.

    Returns:
        Index → reason.
    """
    reasons = {}
    for group in _copies(digests):
        for index in group:
            rest = (samples[copy] for copy in group if samples[copy].label != samples[index].label)
            if (other := next(rest, None)) is not None:
                reasons[index] = f"the same picture is labelled {other.label}: {other.path}"
    return reasons


def copies_across_splits(digests: Sequence[bytes], samples: Sequence[Sample]) -> dict[int, str]:
    """Images of which a copy is in a later split; a network would be tested on what it has learned.

    The test image stays, and one to validate on stays before one to train on.

    Args:
        digests: equal for equal pictures, ``[N]``.
        samples: ``[N]``.

    Returns:
        Index → reason.
    """
    reasons: dict[int, str] = {}
    for group in _copies(digests):
        kept = max((samples[index] for index in group), key=lambda sample: _LATER[sample.split])
        reason = f"a copy of the {kept.split} image {kept.path}"
        reasons |= {index: reason for index in group if samples[index].split != kept.split}
    return reasons


def _copies(digests: Sequence[bytes]) -> list[list[int]]:
    """Indices of equal digests, where there are two or more."""
    groups = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]

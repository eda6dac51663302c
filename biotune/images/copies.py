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
    found = {}
    for group in _copies(digests):
        for index in group:
            others = (samples[one] for one in group if samples[one].label != samples[index].label)
            other = next(others, None)
            if other is not None:
                found[index] = f"the same picture is labelled {other.label}: {other.path}"
    return found


def copies_across_splits(digests: Sequence[bytes], samples: Sequence[Sample]) -> dict[int, str]:
    """Images of which a copy is in a later split; a network would be tested on what it has learned.

    The test image stays, and one to validate on stays before one to train on.

    Args:
        digests: equal for equal pictures, ``[N]``.
        samples: ``[N]``.

    Returns:
        Index → reason.
    """
    found: dict[int, str] = {}
    for group in _copies(digests):
        kept = max((samples[index] for index in group), key=lambda one: _LATER[one.split])
        reason = f"a copy of the {kept.split} image {kept.path}"
        found |= {index: reason for index in group if samples[index].split != kept.split}
    return found


def _copies(digests: Sequence[bytes]) -> list[list[int]]:
    """Indices of equal digests, where there are two or more."""
    groups = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]

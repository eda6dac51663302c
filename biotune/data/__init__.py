"""Arrays out: the prepared dataset, how images are split, decoded and resized.

>>> from biotune.data import PreparedImages
>>> prepared = PreparedImages.open(Path("artifacts/prepared"))              # doctest: +SKIP

Importing this package, and opening a prepared dataset, needs neither torch nor scikit-learn.
The resize that training and the exported network share is in ``biotune.data.transforms`` (torch).
"""

from biotune.data.decoding import UnusableImageError
from biotune.data.prepared import PreparedImages, Rejected
from biotune.data.splits import (
    SPLITS,
    Split,
    assign_splits,
    resample,
    stratified_folds,
    stratified_split,
)

__all__ = [
    "SPLITS",
    "PreparedImages",
    "Rejected",
    "Split",
    "UnusableImageError",
    "assign_splits",
    "resample",
    "stratified_folds",
    "stratified_split",
]

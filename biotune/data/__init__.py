"""Images in, arrays out: where images come from, how they are split, and the prepared dataset.

>>> from biotune.data import open_source, prepare_images
>>> source = open_source("digits", Path("data"))                            # doctest: +SKIP
>>> prepared = prepare_images(source, Path("artifacts/prepared"), image_size=64,
...                           train_images=300, validation_images=300, seed=0)  # doctest: +SKIP

Importing this package, and opening a prepared dataset, needs neither torch nor scikit-learn.
The resize that training and the exported network share is in ``biotune.data.transforms`` (torch).
"""

from biotune.data.decoding import UnusableImageError
from biotune.data.prepared import PreparedImages, Rejected
from biotune.data.preparing import TooManyRejectedError, prepare_images
from biotune.data.sources import (
    SOURCES,
    DigitsSource,
    ImageFolderSource,
    ImageSource,
    ImageTableSource,
    LabelTable,
    TorchvisionSource,
    open_source,
)
from biotune.data.splits import (
    SPLITS,
    Split,
    assign_splits,
    resample,
    stratified_folds,
    stratified_split,
)

__all__ = [
    "SOURCES",
    "SPLITS",
    "DigitsSource",
    "ImageFolderSource",
    "ImageSource",
    "ImageTableSource",
    "LabelTable",
    "PreparedImages",
    "Rejected",
    "Split",
    "TooManyRejectedError",
    "TorchvisionSource",
    "UnusableImageError",
    "assign_splits",
    "open_source",
    "prepare_images",
    "resample",
    "stratified_folds",
    "stratified_split",
]

"""Images in: where they come from, how they are read, and the folder of prepared ones.

>>> from biotune.images import open_source, prepare_images
>>> source = open_source("digits", Path("data"))                            # doctest: +SKIP
>>> prepared = prepare_images(source, Path("artifacts/prepared"), image_size=64,
...                           train_images=300, validation_images=300, seed=0)  # doctest: +SKIP

Importing this package needs neither torch nor scikit-learn.
"""

from biotune.images.preparing import TooManyRejectedError, prepare_images
from biotune.images.sources import (
    SOURCES,
    DigitsSource,
    ImageFolderSource,
    ImageSource,
    ImageTableSource,
    LabelTable,
    TorchvisionSource,
    open_source,
)

__all__ = [
    "SOURCES",
    "DigitsSource",
    "ImageFolderSource",
    "ImageSource",
    "ImageTableSource",
    "LabelTable",
    "TooManyRejectedError",
    "TorchvisionSource",
    "open_source",
    "prepare_images",
]

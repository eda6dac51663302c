"""BioTune: evolve which blocks of a pretrained network to freeze and how fast the others learn."""

__version__ = "0.1.0"

"""The search as it was at commit 4af523c, to compare later ones with.

The default search of then, on :class:`~biotune.evolution.BioTune` without screening: one training
seed a candidate, one fold, racing on, confirmed on divisions of the images made anew.
"""

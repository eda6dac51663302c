"""Train a pretrained network as a plan says: backbones, freezing, one run, and a plan's fitness."""

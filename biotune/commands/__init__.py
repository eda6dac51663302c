"""The `biotune` command: what a deployed model needs; in a checkout the stages join it."""

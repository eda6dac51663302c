"""A package, so that one of this name among installed packages is not taken for it."""

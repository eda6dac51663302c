"""The stages as commands. Parse, make one call into ``pipeline``, translate errors."""

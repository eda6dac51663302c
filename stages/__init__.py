"""The stages as commands. Click only: parse, make one call into ``pipeline``, translate errors."""

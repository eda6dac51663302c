"""A stage in a container of its own."""

"""Settings for all tests."""

from hypothesis import settings

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

"""Settings for all tests."""

import os

from hypothesis import settings

# The first example of a test may import a slow library, and CI machines are busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A stage that is called in here would go on in a container, and the tests with it.
os.environ.pop("BIOTUNE_RUNTIME", None)

"""Configuration, processor and model, and the media that they read."""

from .transformers_api import warn_of_unsupported

# Here, not in the package's own __init__.py: that is imported by the start-up line in every interpreter.
warn_of_unsupported()

"""Configuration, processor and model, and the media that they read."""

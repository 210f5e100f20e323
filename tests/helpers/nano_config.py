"""A nano backbone of a few steps, for tests."""

from vaemotionllm.nano.backbone import BackboneConfig

TINY = BackboneConfig(hidden=32, layers=1, vision_layers=1, text_steps=2, steps=4, images=2, warmup_steps=2)

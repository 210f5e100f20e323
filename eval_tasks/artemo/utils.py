"""Names for the YAMLs here. lmms-eval runs this file again for every `!function`, so it holds nothing itself."""

from vaemotionllm.evaluation import artemo


def __getattr__(name):
    # What depends on the selected benchmark is made when a task is loaded, not when tasks are listed.
    return artemo.yaml_value(name)

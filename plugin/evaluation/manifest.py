"""Payload of the entry point `lmms_eval.models`: the class is named, not imported.

lmms-eval drops every later entry point when one raises, so nothing here may.
"""


def manifest():
    """The ModelManifest of `--model vaemotionllm`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="vaemotionllm",
        chat_class_path="vaemotionllm.evaluation.lmms_model.VAEmotionLLM",
    )

"""Names for the YAMLs here. lmms-eval runs this file anew for every `!function`, so it holds nothing itself."""

from vaemotionllm.evaluation import artemo

doc_to_text = artemo.doc_to_text
doc_to_target = artemo.doc_to_target
doc_to_messages = artemo.doc_to_messages
doc_to_visual = artemo.doc_to_visual
process_results = artemo.process_results
ci95_low = artemo.ci95_low
ci95_high = artemo.ci95_high


def __getattr__(name):
    # dataset_kwargs, metadata, alias_TASK, documents_ASPECT_MODALITY: they depend on the benchmark in force, and are
    # made when a task is loaded, not when tasks are listed.
    return artemo.yaml_value(name)

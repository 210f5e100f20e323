"""Names for the YAMLs here. lmms-eval runs this file anew for every `!function`, so it holds nothing itself."""

from vaemotionllm.evaluation import artemo, artemo_circular, artemo_conflict, artemo_va

doc_to_text = artemo.doc_to_text
doc_to_target = artemo.doc_to_target
doc_to_messages = artemo.doc_to_messages
doc_to_visual = artemo.doc_to_visual
process_results = artemo.process_results
macro_f1 = artemo.macro_f1
uar = artemo.uar
ci95_low = artemo.ci95_low
ci95_high = artemo.ci95_high

circular_process_results = artemo_circular.process_results
circular_accuracy = artemo_circular.circular_accuracy
circular_ci95_low = artemo_circular.ci95_low
circular_ci95_high = artemo_circular.ci95_high

conflict_doc_to_target = artemo_conflict.doc_to_target
conflict_process_results = artemo_conflict.process_results
conflict_ci95_low = artemo_conflict.ci95_low
conflict_ci95_high = artemo_conflict.ci95_high

va_doc_to_text = artemo_va.doc_to_text
va_doc_to_target = artemo_va.doc_to_target
va_doc_to_messages = artemo_va.doc_to_messages
va_process_results = artemo_va.process_results
va_ccc = artemo_va.aggregation("ccc")
va_ccc_valence = artemo_va.aggregation("ccc_valence")
va_ccc_arousal = artemo_va.aggregation("ccc_arousal")
va_pearson_valence = artemo_va.aggregation("pearson_valence")
va_pearson_arousal = artemo_va.aggregation("pearson_arousal")
va_rmse_valence = artemo_va.aggregation("rmse_valence")
va_rmse_arousal = artemo_va.aggregation("rmse_arousal")
va_ci95_low = artemo_va.ci95_low
va_ci95_high = artemo_va.ci95_high


def __getattr__(name):
    # dataset_kwargs, metadata, alias_TASK, documents_TASK: they depend on the benchmark in force, and are made when a
    # task is loaded, not when tasks are listed.
    return artemo.yaml_value(name)

"""Patches of other packages: one a file, applied after the target is imported (startup.py), each safe to apply twice.

PATCHES is the index. A patch that does not fit the installed version warns with the way to do it by hand, changes
nothing and never raises.
"""

PATCHES = {
    "lmms_eval_threads": {
        "target": "the environment of a process that imports lmms_eval",
        "why": "threads of OpenMP that wait by spinning stop an evaluation on a CPU as soon as another process runs "
        "(benchmarks/threads.py), and what says otherwise is read when lmms-eval imports torch.",
        "how": "sets GOMP_SPINCOUNT where neither it nor OMP_WAIT_POLICY is set",
        "upstream": "no report known; how long a thread spins is libgomp's choice, "
        "https://github.com/gcc-mirror/gcc/blob/master/libgomp/env.c",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "torch bounds the spinning itself",
    },
    "lmms_eval_tasks": {
        "target": "lmms_eval.tasks.TaskManager.initialize_tasks",
        "why": "lmms-eval has entry points for models and none for tasks: without a flag or a variable it would not "
        "find `artemo`, and `lmms-eval tasks list` and `lmms-eval power` have no variable either.",
        "how": "wraps the method, appends the folder of vaemotionllm.eval_tasks to include_path and parses by libyaml",
        "upstream": "https://github.com/EvolvingLMMs-Lab/lmms-eval/issues/102 (closed with LMMS_EVAL_PLUGINS, "
        "https://github.com/EvolvingLMMs-Lab/lmms-eval/pull/126)",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "lmms-eval reads task folders from an entry-point group",
    },
    "lmms_eval_hearing": {
        "target": "lmms_eval.evaluator.evaluate and simple_evaluate",
        "why": "adapters of models without audio drop the audio of a question without a word and answer all the same; "
        "the audio tasks would get a score from a model without audio. A task is built without the model, so it "
        "cannot refuse by itself. Arguments that cannot be used end the command with code 0, and examples of "
        "--num_fewshot reach no chat model.",
        "how": "wraps both: where a task of artemo gives audio and the model takes none, or arguments for our model "
        "or tasks cannot be used, the command ends with code 2 before the first question",
        "upstream": "no report known; the adapters are in lmms_eval/models of "
        "https://github.com/EvolvingLMMs-Lab/lmms-eval",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "lmms-eval lets a model state its modalities and a task require them",
    },
    "lmms_eval_huggingface": {
        "target": "lmms_eval.models.chat.huggingface.Huggingface.__init__ and AutoModel in its module",
        "why": "`lmms-eval --model huggingface` loads every vision-language model without its head, and hands each "
        "processor the argument `audios`, which transformers 5 refuses: it evaluates nothing, with or without audio.",
        "how": "loads the class with a head; wraps the processor, which gets waveforms as `audio`, videos as frames",
        "upstream": "no report known; the code is lmms_eval/models/chat/huggingface.py of "
        "https://github.com/EvolvingLMMs-Lab/lmms-eval, the refusal "
        "https://github.com/huggingface/transformers/blob/main/src/transformers/processing_utils.py",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "the adapter looks a config's class up, and says `audio`",
    },
    "lmms_eval_qwen2_5_omni": {
        "target": "lmms_eval.models.simple.qwen2_5_omni.Qwen2_5_Omni.__init__",
        "why": "`lmms-eval --model qwen2_5_omni` removes the talker and requests text in the words of transformers 4; "
        "transformers 5 refuses every question, and the adapter makes an empty answer of each refusal.",
        "how": "the adapter's model hands `generate` to its thinker; inputs go to where the model is, not to CUDA",
        "upstream": "no report known; the code is lmms_eval/models/simple/qwen2_5_omni.py of "
        "https://github.com/EvolvingLMMs-Lab/lmms-eval, the refusal "
        "https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen2_5_omni/"
        "modeling_qwen2_5_omni.py",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "transformers generates text without a talker, and the adapter says generation_mode",
    },
    "lmms_eval_power": {
        "target": "lmms_eval.cli.power_utils.collect_task_sizes",
        "why": "`lmms-eval power --tasks artemo` would leave the group out without a word and count nothing.",
        "how": "wraps the function and replaces a group's name by the names of its tasks",
        "upstream": "no report known; the code is lmms_eval/cli/power_utils.py of "
        "https://github.com/EvolvingLMMs-Lab/lmms-eval",
        "versions": "lmms-eval >=0.7.3,<0.8",
        "until": "lmms-eval power counts groups itself",
    },
    "transformers_auto": {
        "target": "the registries of transformers.models.auto",
        "why": "AutoModel.from_pretrained(DIR) shall load a VAEmotionLLM without trust_remote_code in a program that "
        "never imports vaemotionllm; the public register() needs the classes, and so imports half of transformers.",
        "how": "puts names into the registries, which are imported when they are first read",
        "upstream": "https://github.com/huggingface/transformers/pull/13989 (the register API; "
        "https://github.com/huggingface/transformers/issues/13522 requested it)",
        "versions": "transformers >=5.23,<5.25",
        "until": "transformers discovers third-party models by entry points, or holds VAEmotionLLM itself",
    },
    "transformers_pipelines": {
        "target": "transformers.pipelines.base.pad_collate_fn",
        "why": "pipelines with a batch_size refuse a tokenizer and a feature extractor that pad on different sides, "
        "and would keep one window of each audio; a batch of samples with different media is refused as well.",
        "how": "wraps the function: inputs of a VAEmotionLLM's processor are padded on the left and joined whole",
        "upstream": "no report known; the code is "
        "https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/base.py",
        "versions": "transformers >=5.23,<5.25",
        "until": "pipelines let a processor make the batch",
    },
}

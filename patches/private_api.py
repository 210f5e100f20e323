"""Private functions of transformers that this package overrides or calls: where to look first in a new version.

Nothing here is patched; tests/test_versions.py holds the list against the code and the installed library. Each has the
class, the name, the parameters that are relied on, and what to do when it moves.
"""

PRIVATE = [
    (
        "ProcessorMixin", "_normalize_conversations", ("conversation",),
        "called: one conversation or several as a list of lists of dicts, before media items are read. When it moves: "
        "do as `ProcessorMixin.apply_chat_template` does.",
    ),
    (
        "ProcessorMixin", "_multimodal_inputs_from_conversations",
        ("conversations", "audio_loading_params", "load_audio_from_video"),
        "overridden: media stay unread, for `__call__` reads them. When it moves: override what `apply_chat_template` "
        "calls in its place to load media; without that the library's own loaders would read them.",
    ),
    (
        "ProcessorMixin", "_get_num_multimodal_tokens", None,
        "defined: serving engines call it. When it moves: follow the processors of the library.",
    ),
    (
        "ProcessorMixin", "_merge_kwargs", ("tokenizer_init_kwargs",),
        "overridden, and called on the backbone's: arguments of a call by modality. When it moves: override what "
        "`ProcessorMixin.__call__` calls.",
    ),
    (
        "ProcessorMixin", "_process_images", ("images",),
        "overridden, and called on the backbone's: features of images and their placeholders. When it moves: call the "
        "backbone's processor with an image and its placeholder, and take the features from what it returns.",
    ),
    ("ProcessorMixin", "_process_videos", ("videos",), "as `_process_images`."),
    (
        "ProcessorMixin", "_process_audio", ("audio",),
        "overridden: features of audio and their placeholders. When it moves: override what `__call__` calls.",
    ),
    (
        "Trainer", "_run_epoch", None,
        "overridden: a finished run takes no further step. When it moves: stop in `on_train_begin`.",
    ),
    (
        "Trainer", "_get_grad_norm", ("model", "grad_norm"),
        "overridden: a gradient that is not finite stops the run. When it moves: check in `on_pre_optimizer_step`.",
    ),
    (
        "Trainer", "_save_optimizer_and_scheduler", ("output_dir",),
        "overridden: DeepSpeed checkpoints leave frozen weights out. When it moves: override what saves the engine.",
    ),
    (
        "Trainer", "_save_checkpoint", ("model", "trial"),
        "overridden: old checkpoints go after the new one is whole. When it moves: `save_total_limit` off, and "
        "`rotate` in `on_save`.",
    ),
    (
        "Trainer", "_load_from_checkpoint", ("resume_from_checkpoint", "model"),
        "overridden: a checkpoint holds the trained weights alone. When it moves: load in `on_train_begin`.",
    ),
    (
        "Trainer", "_get_output_dir", ("trial",),
        "called: the folder of the run. When it moves: `args.output_dir`, but for a hyperparameter search.",
    ),
    (
        "Trainer", "_load_optimizer_and_scheduler", None,
        "called: the scheduler's state under DeepSpeed. When it moves: load scheduler.pt in `on_train_begin`.",
    ),
    (
        "Trainer", "_prepare_inputs", ("inputs",),
        "overridden, and called: a batch on the device, and what the host reads on the CPU. When it moves: do so in "
        "`compute_loss`.",
    ),
    (
        "Trainer", "_prepare_for_training", ("max_steps", "train_dataloader", "resume_from_checkpoint"),
        "overridden: hooks on the DeepSpeed engine once it is made. When it moves: attach them in `on_train_begin`.",
    ),
]  # fmt: skip

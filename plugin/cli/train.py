"""Commands around training: init, plan, cache-teacher, train, export, inspect.

Under a launcher this module runs `train`, or `cache-teacher` where that is its first word:

    torchrun --nproc_per_node 8 -m vaemotionllm.cli.train --config stage1_qwen2_5_vl_7b
    torchrun --nproc_per_node 8 -m vaemotionllm.cli.train cache-teacher --config stage1_qwen2_5_vl_7b
"""

import argparse
import atexit
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from ..model.inputs import folder_or_hub_name
from ..utils import InputError, check_new, new_folder, owned
from . import positive
from .main import main


def _add_config(parser: argparse.ArgumentParser) -> None:
    # The deepspeed launcher adds it; the environment variable LOCAL_RANK says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of a config that the package ships")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields to set, as YAML values")


def _values_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a training config. What a mistyped path says waits for no import of torch."""
    from ..config_file import read_config, with_models_found
    from ..data.manifest import manifest_file

    values = with_models_found(read_config(args.config, args.overrides))
    if isinstance(values.get("manifest"), str):
        manifest_file(values["manifest"])
    return values


# ---- train


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """A run that was stopped resumes from its last complete checkpoint when the same command runs
    again; a finished one is made longer by a larger max_steps or num_train_epochs. SIGTERM ends a run with a
    checkpoint and exit code 143."""
    _add_config(parser)
    parser.add_argument("--fields", action=_Fields, help="list the config fields of both stages and exit")


class _Fields(argparse.Action):
    """Like --help: needs no config."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        from ..config_file import describe_field, own_fields
        from ..train.config import CONFIGS, StageConfig

        common = {field.name for field in own_fields(StageConfig)}
        for title, cls in [("Both stages", StageConfig), *((f"Stage {n}", cls) for n, cls in CONFIGS.items())]:
            print(f"{title} (name: type = default)")
            for field in own_fields(cls):
                if cls is StageConfig or field.name not in common:
                    print(f"  {describe_field(cls, field)}\n      {field.metadata.get('help', '')}")
        print("Every field of transformers.TrainingArguments is allowed as well.")
        parser.exit()


def run_train(args: argparse.Namespace) -> None:
    from ..config_file import build_config, shipped_file

    values = _values_of(args)
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = str(shipped_file("deepspeed", values["deepspeed"], (".json",)))
    if values.get("stage") not in (1, 2):
        raise InputError(f"config field `stage` is {values.get('stage')!r}; allowed are 1 (VG-Align), 2 (EmoAdapter).")
    # Checked before what only a run needs is imported.
    from ..train.config import CONFIGS

    config = build_config(CONFIGS[values["stage"]], values)
    from ..train.run import run

    with shown_log(config.process_index == 0):
        outcome = run(config)
    if config.process_index == 0 and outcome == "finished":
        print(f"{config.output_dir} already holds the finished run; raise max_steps to train longer, or give "
              "overwrite=true to train again.")  # fmt: skip
    elif config.process_index == 0:
        print(f"Stage {config.stage} is finished: {config.output_dir}")


# ---- cache-teacher


def add_cache_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """Training with the same config then reads `teacher_cache` in place of running the teacher in each
    step. What was stopped is resumed; more clips or responses are added to what is there."""
    _add_config(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--estimate", action="store_true", help="print what it will take on disk, and end")
    group.add_argument(
        "--prompts-only", type=Path, metavar="FILE", help="write the prompts in OpenAI's batch format, and end"
    )
    group.add_argument(
        "--answers", type=Path, metavar="FILE",
        help="take the responses from JSON lines of {id, prompt, response}, or OpenAI's batch output",
    )  # fmt: skip


def run_cache_teacher(args: argparse.Namespace) -> None:
    from ..config_file import build_config

    values = _values_of(args)
    if values.get("stage") != 1:
        raise InputError(f"config field `stage` is {values.get('stage')!r}; only stage 1 has a teacher.")
    if not values.get("teacher_cache"):
        raise InputError("config field `teacher_cache` is missing: name the folder that is to be filled.")
    # An engine shards what it trains; here nothing is trained, and the teacher is whole on each rank.
    values = {"output_dir": values["teacher_cache"], **values, "deepspeed": None, "fsdp": False}
    os.environ["ACCELERATE_USE_FSDP"] = "false"  # of accelerate launch
    from ..train.config import Stage1Config
    from ..train.data import Stage1Data
    from ..train.model import load_model

    config = build_config(Stage1Config, values)
    data, is_main = Stage1Data(config), config.process_index == 0
    if args.prompts_only:
        from ..train.answers import write_prompts

        if is_main:
            count = write_prompts(args.prompts_only, data.clips, data.source, config)
            print(f"{args.prompts_only}: {count} prompts")
        return
    fills = is_main and not args.estimate
    with shown_log(is_main), owned(Path(config.teacher_cache), "teacher_cache") if fills else contextlib.nullcontext():
        model, processor = load_model(config)
        sizes, responses = data.estimate_bytes(model), len(data.clips) * config.responses_per_clip
        if is_main:
            print(f"At most {_size(sizes['states'])} for {responses} responses of up to {config.max_response_tokens} "
                  f"tokens; {_size(sizes['free'])} are free.", flush=True)  # fmt: skip
            if sizes["states"] > sizes["free"]:
                print("WARNING: it may not fit. Lower responses_per_clip or max_response_tokens, or use another disk.")
        if not args.estimate:
            made = data.fill_teacher_cache(model, processor, args.answers)
    if fills:
        used = sum(file.stat().st_size for file in Path(config.teacher_cache).iterdir() if file.is_file())
        print(f"{config.teacher_cache}: {made} responses, {_size(used)}")
        if made < responses:
            print(f"{responses - made} have no answer yet; without --answers the same command generates them.")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"


# ---- plan


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The model is made at full size on the meta device: its config.json is read, its weights are not."
    _add_config(parser)
    add = parser.add_argument
    add("--gpus", type=int, default=1, metavar="N", help="number of GPUs (1)")
    add("--gpu-memory-gb", type=float, default=80, metavar="GB", help="memory of one GPU, counted in GiB (80)")
    add("--peak-tflops", type=float, default=989, metavar="N", help="dense bf16 peak of one GPU (989, an H100)")
    add("--mfu", type=float, default=0.35, metavar="SHARE", help="share of the peak reached (0.35)")
    add("--clips", type=int, default=100_000, metavar="N", help="number of clips (100000)")
    add("--pixels-per-frame", type=int, default=448 * 448, metavar="N", help="of a frame (200704)")
    add("--json", action="store_true", help="print one JSON object")


def run_plan(args: argparse.Namespace) -> None:
    from ..train.plan import as_text, make_plan

    names = ("gpus", "gpu_memory_gb", "peak_tflops", "mfu", "clips", "pixels_per_frame")
    found = make_plan(args.config, args.overrides, {name: getattr(args, name) for name in names})
    print(json.dumps(found) if args.json else as_text(found))


# ---- init


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--vlm", required=True, metavar="DIR_OR_NAME", help="a transformers image-text-to-text model")
    add("--audio", required=True, metavar="DIR_OR_NAME", help="a transformers audio encoder with its extractor")
    add("--out", required=True, type=Path, metavar="DIR", help="new folder for the model and its processor")
    add("--seed", type=int, default=0, help="seed of the new weights: projector, EmoAdapter (default 0)")
    add("--like", metavar="CONFIG", help="take model_fields, num_frames and max_audio_s from this training config")
    add("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of VAEmotionLLMConfig")


def run_init(args: argparse.Namespace) -> None:
    check_new(args.out, "--out")  # before the model is made
    from ..config_file import parse_overrides, read_config

    vlm, audio = folder_or_hub_name(args.vlm, "--vlm"), folder_or_hub_name(args.audio, "--audio")
    like = read_config(args.like) if args.like else {}
    fields = {**(like.get("model_fields") or {}), **parse_overrides(args.overrides)}

    import torch

    from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration
    from ..model.processing_vaemotionllm import VAEmotionLLMProcessor

    torch.manual_seed(args.seed)
    try:
        # The processor makes as many placeholders as the projector makes tokens.
        media = {name: like[name] for name in ("num_frames", "max_audio_s") if name in like}
        if "projector_stride" in fields:
            media["projector_stride"] = fields["projector_stride"]
        processor = VAEmotionLLMProcessor.from_backbone(vlm, audio, **media)
        model = VAEmotionLLMForConditionalGeneration.from_backbone(vlm, audio, **fields)
    except (OSError, ValueError) as error:
        raise InputError(f"--vlm {args.vlm} and --audio {args.audio} do not make a model: {error}") from error
    with new_folder(args.out, "--out") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    whole, tower = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, model.audio_tower))
    print(f"{args.out}: {whole:.2f} M parameters, of which audio tower {tower:.2f} M, not yet trained on audio")


# ---- export


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """It starts from the model that the run started from: run it where the paths in the run's config
    are valid. LoRA is merged into the model, and written alone into DIR/adapter for PEFT. A checkpoint that DeepSpeed
    wrote is unpickled, which can execute code: export only runs of your own."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="output_dir of a training run, finished or not")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="step of the checkpoint (default: the last one)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder for model and processor")


def run_export(args: argparse.Namespace) -> None:
    with new_folder(args.out, "--out") as partial:
        from ..train.checkpoint import export

        taken = export(args.run, partial, args.checkpoint)
    print(f"{args.out}: the model of {taken}")


# ---- inspect


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """The teacher answers the prompt about the visual; at each token of its answer the most probable
    tokens of both are shown, and KL(teacher || student) in nats."""
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_NAME", help="a VAEmotionLLM, as stage 1 saved it")
    add("--manifest", required=True, help="clip manifest, .jsonl or .parquet")
    add("--split", default="train", help="split of the clip (default train)")
    add("--id", help="id of the clip (default: the split's first)")
    add("--prompt", default="Describe this and the emotion that it expresses.", help="the prompt")
    add("--modality", default="audio", choices=("audio", "av"), help="what the student is given")
    add("--top", type=positive, default=3, help="tokens shown at each position (default 3)")
    add("--max-response-tokens", type=positive, default=32, help="longest answer (default 32)")
    add("--device", default=None, help="default: the accelerator, where there is one")
    add("--json", action="store_true", help="print one JSON object")


def run_inspect(args: argparse.Namespace) -> None:
    folder_or_hub_name(args.model, "--model")
    from ..data.manifest import read_manifest

    clips = {clip.id: clip for clip in read_manifest(args.manifest, args.split, ("audio", "visual"))}
    first = next(iter(clips))
    clip = clips.get(args.id or first)
    if clip is None:
        raise InputError(f"--id {args.id} is not in split {args.split} of {args.manifest}; the first is {first}.")

    import pandas as pd

    from ..model.loading import load_model, load_processor
    from ..train.teacher import compare

    model, processor = load_model(args.model, args.device), load_processor(args.model)
    found = compare(model, processor, clip, args.prompt, args.modality, args.max_response_tokens, args.top)
    if args.json:
        print(json.dumps(found))
        return
    words = lambda expected: " ".join(f"{token!r} {share:.2f}" for token, share in expected)
    rows = [(repr(p["token"]), words(p["teacher"]), words(p["student"]), p["kl"]) for p in found["positions"]]
    table = pd.DataFrame(rows, columns=["token", "teacher expects", "student expects", "KL"])
    print(f"clip {clip.id}, student modality {args.modality}: {args.prompt}")
    print(f"teacher: {found['response']}\nstudent: {found['student_response']}\n")
    print(table.to_string(index=False, float_format="{:.3f}".format), end="\n\n")
    print(f"mean KL {found['kl']:.3f} nats; the most probable token is the same at {found['agreement']:.0%}")


# ---- one process of several under a launcher: how it ends, and what it logs


def end_rank(code: int) -> NoReturn:
    """End this process with an exit code.

    Under a launcher not by sys.exit: a rank that fails while others wait in a collective must not wait for them, and
    one that has finished is now and then aborted by threads of the communication libraries that outlive the
    interpreter.
    """
    if not code:
        leave_ranks()
    if "LOCAL_RANK" not in os.environ:
        sys.exit(code)
    if not code:
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_ranks() -> None:
    """Take the process group down while Python still runs: its threads must not outlive the interpreter."""
    if "torch" not in sys.modules:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def shown_log(main_process: bool):
    """Shows what the library logs as plain lines on stderr; ranks other than the first show warnings only."""
    library = logging.getLogger("vaemotionllm")
    handler, before = logging.StreamHandler(), library.level
    handler.setLevel(logging.INFO if main_process else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(message)s"))
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(before)


if __name__ == "__main__":
    command, words = "train", sys.argv[1:]
    if "cache-teacher" in words[:2]:  # the deepspeed launcher puts its --local_rank first
        command = "cache-teacher"
        words.remove(command)
    end_rank(main([command, *words]))

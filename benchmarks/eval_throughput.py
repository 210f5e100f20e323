"""Samples a second of lmms-eval on the nano world: our adapter against lmms-eval's generic one, the same model.

    python benchmarks/eval_throughput.py [--clips 32] [--batch-size 32] [--rounds 3]
    python benchmarks/eval_throughput.py --model DIR --benchmark DIR      # a trained model on another benchmark

The six cells of `artemo` with real videos, images and audio, by lmms-eval's own task objects and requests. Each
round begins without any decoded or encoded media, as an evaluation does; the weights are loaded once, and both
adapters hold the same float32 model, so that they differ in nothing but themselves. (The generic adapter would load
bfloat16.) It runs through the patch `lmms_eval_huggingface` of this package, without which it does not run on
transformers 5, and with one question a batch, since of a larger batch it answers the first question alone.

Without --model the model is the nano backbone after a short training, enough for it to answer in letters that differ,
with an untrained audio pathway: what it answers means nothing, how long it takes does. The answers of all rows but the
last must be the same, or the script ends with 1. Goals: at least 2.5 times the samples a second.
"""

import argparse
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from common import against_goals, last_line, machine, paired_times, quiet, ratio, table

GOALS = {"time_vs_stock": 1 / 2.5}
CELLS = [f"artemo_{aspect}_{modality}" for aspect in ("content", "emotion") for modality in ("audio", "visual", "av")]
# Enough to say a letter and end; the finished backbone has more.
TEXT_STEPS, STEPS = 250, 150
STOCK, FULL = "lmms-eval's generic adapter", "+ media encoded once a clip"


def make_model(folder: Path) -> Path:
    """A VAEmotionLLM on a nano backbone after a short training."""
    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
    from vaemotionllm.nano.backbone import BackboneConfig, build_backbone

    config = BackboneConfig(text_steps=TEXT_STEPS, steps=STEPS, warmup_steps=20)
    backbone = build_backbone(config=config)
    parts = str(backbone / "vlm"), str(backbone / "audio")
    path = folder / "model"
    VAEmotionLLMForConditionalGeneration.from_backbone(*parts, projector_stride=10).save_pretrained(path)
    VAEmotionLLMProcessor.from_backbone(*parts, projector_stride=10, num_frames=4).save_pretrained(path)
    return path


def make_benchmark(folder: Path, clips: int) -> Path:
    from vaemotionllm.nano.world import build_world

    build_world(folder / "world", sizes={"benchmark": clips})
    return folder / "world" / "benchmark"


def load_requests(limit: int | None) -> tuple[list, dict]:
    """lmms-eval's requests of all cells, and its task_dict of documents."""
    import lmms_eval.models  # noqa: F401 - with it our tasks are known
    from lmms_eval.tasks import TaskManager, get_task_dict

    tasks = get_task_dict(CELLS, TaskManager("ERROR"), "chat")
    requests = []
    for name in CELLS:
        tasks[name].build_all_requests(limit=limit)
        requests += tasks[name].instances
    return requests, {name: tasks[name].dataset for name in CELLS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32, help="clips of the nano world; six questions each")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a VAEmotionLLM; default: one that is made now")
    parser.add_argument("--benchmark", help="folder of a benchmark; default: one of the nano world")
    parser.add_argument("--limit", type=int, help="questions a cell; default: all")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Before the libraries are loaded: what they write goes there.
        os.environ.setdefault("VAEMOTIONLLM_CACHE", str(folder / "cache"))
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
        os.environ["ARTEMO_DATASET"] = args.benchmark or str(make_benchmark(folder, args.clips))
        measure(Path(args.model) if args.model else make_model(folder), args.batch_size, args.rounds, args.limit)


def measure(path: Path, batch_size: int, rounds: int, limit: int | None) -> None:
    quiet()
    print(machine())
    requests, documents = load_requests(limit)
    from lmms_eval.models.chat import huggingface
    from loguru import logger

    from vaemotionllm.evaluation.lmms_model import VAEmotionLLM
    from vaemotionllm.evaluation.media_cache import EncodedMedia
    from vaemotionllm.patches import lmms_eval_huggingface

    logger.disable("lmms_eval")
    lmms_eval_huggingface.apply()
    ours = VAEmotionLLM(pretrained=str(path), batch_size=batch_size)
    device = str(ours.device)
    stock = huggingface.Huggingface(
        pretrained=str(path), device=device, device_map=device, max_num_frames=ours.processor.num_frames
    )
    stock._model = ours.model
    for adapter in (stock, ours):
        adapter.task_dict.update(documents)
    workers, kept_bytes = ours.pipeline.workers, ours.pipeline.kept.max_bytes
    answers: dict[str, list[str]] = {}

    def stock_run() -> None:
        answers[STOCK] = [result.text for result in stock.generate_until(requests)]

    def run(name: str, batch: int, threads: int, max_bytes: int) -> None:
        ours.batch_size = batch
        ours.pipeline.workers, ours.pipeline.kept = threads, EncodedMedia(max_bytes)
        answers[name] = [result.text for result in ours.generate_until(requests)]

    steps = {
        "ours, one question a batch": (1, 1, 0),
        f"+ {batch_size} questions a batch": (batch_size, 1, 0),
        f"+ {workers} threads that decode": (batch_size, workers, 0),
        FULL: (batch_size, workers, kept_bytes),
    }
    runs = {STOCK: stock_run, **{name: partial(run, name, *values) for name, values in steps.items()}}
    stderr, sys.stderr = sys.stderr, open(os.devnull, "w")  # the adapters' bars
    try:
        for one in runs.values():
            one()
        times = paired_times(runs, rounds)
    finally:
        sys.stderr.close()
        sys.stderr = stderr
    rows = [
        [name, f"{len(requests) / statistics.median(found):.1f}", f"{1 / ratio(times, name, STOCK):.2f}"]
        for name, found in times.items()
    ]
    print(f"{len(requests)} questions, {len(set(answers[STOCK]))} different answers")
    table(["", "samples/s", "of the generic adapter's"], rows)
    same = {
        name: sum(a == b for a, b in zip(given, answers[STOCK])) / len(requests) for name, given in answers.items()
    }
    measured = {"time_vs_stock": ratio(times, FULL, STOCK)}
    against_goals(measured, GOALS)
    last_line(
        measured
        | {"samples_per_s_vs_stock": 1 / measured["time_vs_stock"], "equal_answers": same[FULL]}
        | {"questions": len(requests), "different_answers": len(set(answers[STOCK]))}
    )
    different = {name: share for name, share in same.items() if share < 1}
    if different:
        for name in different:
            for request, mine, its in zip(requests, answers[name], answers[STOCK]):
                if mine != its:
                    print(f"{request.task_name} {request.doc_id}: {its!r}, {name}: {mine!r}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Requests of lmms-eval to a tiny model, and its command as a fork."""

import os
import subprocess

import fork_server
from lmms_eval.api.instance import Instance

from vaemotionllm.benchmark import schema
from vaemotionllm.evaluation import artemo
from vaemotionllm.evaluation.lmms_model import VAEmotionLLM

GREEDY = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


def documents_of(folder) -> dict:
    """All items of the benchmark as lmms-eval's task_dict; they mix every kind of media."""
    rows = [
        {
            "id": item.id, "clip_id": item.clip_id, "question": item.question, "options": list(item.options),
            "answer": item.answer, "audio": item.audio, "image": item.image, "video": item.video,
        }
        for item in schema.load(folder).items
    ]  # fmt: skip
    return {"artemo_all": {"test": rows}}


def instances(documents, generation=GREEDY, to_messages=artemo.doc_to_messages, ids=None) -> list[Instance]:
    return [
        Instance(
            request_type="generate_until",
            arguments=("", to_messages, dict(generation), i, "artemo_all", "test"),
            idx=0,
            metadata={"task": "artemo_all", "doc_id": i, "repeats": 1},
        )
        for i in (range(len(documents["artemo_all"]["test"])) if ids is None else ids)
    ]


def answers(model_folder, documents, batch_size=1, **arguments) -> list[str]:
    model = VAEmotionLLM(pretrained=str(model_folder), batch_size=batch_size, device="cpu", **arguments)
    model.task_dict = documents
    return [result.text for result in model.generate_until(instances(documents))]


def lmms_eval(*arguments, cwd, dataset, run=fork_server.run, **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, "ARTEMO_DATASET": str(dataset), "VAEMOTIONLLM_CACHE": str(cwd / "cache"), **environment}
    return run(["-m", "lmms_eval", *arguments], env, cwd)

"""What the nano backbone was taught in words, asked again: whether later training has made it forget.

Its first lessons named a content and an emotion in words and asked about them, without any picture (see
`BackboneConfig`). The same is asked here, in words that no clip has a part in.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..benchmark.prompts import multiple_choice, parse_choice
from ..model.loading import check_model_folder, load_model, load_processor
from .labels import CONTENTS, EMOTIONS
from .language import CHOICES, draw_options

ROUNDS = 4


def recall_questions(seed: int = 0) -> list[dict]:
    """Multiple-choice questions, `ROUNDS` with other options about each fact: `{id, text, options, answer}`."""
    rng = np.random.default_rng((seed, 91))
    questions = []
    for number, content, emotion, aspect in itertools.product(range(ROUNDS), CONTENTS, EMOTIONS, CHOICES):
        question, labels = CHOICES[aspect]
        answer = {"content": content, "emotion": emotion}[aspect]
        options = draw_options(rng, labels, answer)
        questions.append(
            {
                "id": f"{content}-{emotion}-{aspect}-{number}",
                "text": f"{content} {emotion}\n{multiple_choice(question, options)}",
                "options": options,
                "answer": answer,
            }
        )
    return questions


@torch.inference_mode()
def recall(
    model_dir: str | Path,
    seed: int = 0,
    batch_size: int = 64,
    device: str | None = None,
    use_adapter: bool | None = None,
    progress: bool = False,
) -> dict:
    """Asks a model the questions of `recall_questions`.

    Args:
        model_dir: a VAEmotionLLM on a nano backbone.
        seed: seed of the options.
        batch_size: questions a batch.
        device: device of the model; the first GPU, or the CPU where there is none.
        use_adapter: whether EmoAdapter takes part; what the config says if not given.
        progress: whether to show a bar.

    Returns:
        `{"accuracy", "n", "ids", "correct", "responses"}`; an answer that names no option is wrong.

    Raises:
        InputError: no model in the folder.
    """
    check_model_folder(model_dir)
    model, processor = load_model(str(model_dir), device), load_processor(str(model_dir))
    questions = recall_questions(seed)
    responses: list[str] = []
    for start in tqdm(range(0, len(questions), batch_size), desc="recall", unit="batch", disable=not progress):
        batch = questions[start : start + batch_size]
        chats = [[{"role": "user", "content": [{"type": "text", "text": row["text"]}]}] for row in batch]
        texts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = processor.assemble(texts, [], padding_side="left").to(model.device)
        generated = model.generate(**inputs, use_adapter=use_adapter, max_new_tokens=8, do_sample=False)
        answers = generated[:, inputs["input_ids"].shape[1] :]
        responses += processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    correct = [parse_choice(response, row["options"]) == row["answer"] for row, response in zip(questions, responses)]
    return {
        "accuracy": sum(correct) / len(correct),
        "n": len(correct),
        "ids": [row["id"] for row in questions],
        "correct": correct,
        "responses": responses,
    }

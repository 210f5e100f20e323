"""`vaemotionllm inspect` against whole logits."""

import json

import pytest
import torch
from training import make_setup

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"), clips=4)


def inspect(setup, capsys, *words):
    code = main(["inspect", "--model", str(setup[0]), "--manifest", str(setup[1]), *words])
    return code, capsys.readouterr()


def logits_of(setup, media, prompt, response):
    """(R, V) at the response, by the public processor and a plain forward pass."""
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0]).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(setup[0])
    turn = {"role": "user", "content": [*media, {"type": "text", "text": prompt}]}
    inputs = processor.apply_chat_template(
        [turn], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        said = model.generate(**inputs, use_adapter=False, do_sample=False, max_new_tokens=len(response) or 5)
        tokens = torch.tensor([response]) if response else said[:, inputs["input_ids"].shape[1] :]
        tail = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        tail["mm_token_type_ids"] = torch.zeros_like(tokens)
        whole = {name: torch.cat([inputs[name], tail[name]], 1) if name in tail else inputs[name] for name in inputs}
        logits = model(**whole, use_adapter=False).logits[0, -tokens.shape[1] - 1 : -1]
    return processor, tokens[0].tolist(), torch.log_softmax(logits.double(), -1)


def test_teacher_and_student_side_by_side(setup, capsys):
    words = ["--id", "train-2", "--prompt", "What is it?", "--max-response-tokens", "5", "--top", "2", "--json"]
    code, output = inspect(setup, capsys, *words)
    assert code == 0
    found = json.loads(output.out)
    picture = {"type": "image", "path": str(setup[1].parent / "train-2.png")}
    sound = {"type": "audio", "path": str(setup[1].parent / "train-2.wav")}
    processor, tokens, teacher = logits_of(setup, [picture], "What is it?", [])
    _, _, student = logits_of(setup, [sound], "What is it?", tokens)
    assert found["response"] == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    kl = (teacher.exp() * (teacher - student)).sum(-1)
    assert [position["kl"] for position in found["positions"]] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
    assert found["kl"] == pytest.approx(kl.mean().item(), rel=1e-3) and found["kl"] > 0.1
    assert found["agreement"] == (teacher.argmax(-1) == student.argmax(-1)).double().mean().item()
    for position, p, q in zip(found["positions"], teacher.exp(), student.exp(), strict=True):
        for name, chances in (("teacher", p), ("student", q)):
            best = chances.topk(2)
            assert [share for _, share in position[name]] == pytest.approx(best.values.tolist(), rel=1e-3)
            assert position[name][0][0] == processor.tokenizer.decode([int(best.indices[0])])


def test_the_table_names_both_sides(setup, capsys):
    code, output = inspect(setup, capsys, "--modality", "av", "--max-response-tokens", "3")
    lines = output.out.splitlines()
    assert code == 0 and lines[0].startswith("clip train-0, student modality av: Describe this")
    assert lines[1].startswith("teacher: ") and lines[2].startswith("student: ")
    assert lines[4].split() == ["token", "teacher", "expects", "student", "expects", "KL"]
    assert len(lines) == 5 + 3 + 2 and lines[-1].startswith("mean KL ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--id", "nobody"], "--id nobody is not in split train of .*; the first is train-0"),
        (["--split", "test"], "test"),
    ],
)  # fmt: skip
def test_bad_input_is_named(setup, capsys, words, message):
    import re

    code, output = inspect(setup, capsys, *words)
    assert code == 2 and re.search(message, output.err)

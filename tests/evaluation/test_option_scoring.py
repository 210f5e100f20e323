"""Multiple choice by the probability of the options' letters."""

import benchmark_files
import pytest
import speaking_model
import torch
from test_lmms_eval import answers, documents_of, instances

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.evaluation import artemo
from vaemotionllm.evaluation.lmms_model import VAEmotionLLM, most_probable_letters, option_tokens
from vaemotionllm.nano.backbone import build_processor


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return speaking_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def documents(folder):
    return documents_of(folder)


@pytest.fixture(scope="module")
def shorter(documents):
    """The same items with two, three or four options."""
    rows = documents["artemo_all"]["test"]
    return {"artemo_all": {"test": [{**row, "options": row["options"][: 2 + i % 3]} for i, row in enumerate(rows)]}}


@pytest.fixture(scope="module")
def naive_letters(model_folder, shorter):
    """The most probable letter of each item, by one call of processor and model on the item alone."""
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(model_folder).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(model_folder)
    letters = []
    for row in shorter["artemo_all"]["test"]:
        inputs = processor.apply_chat_template(
            artemo.doc_to_messages(row), tokenize=True, return_dict=True, add_generation_prompt=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        shown = "ABCD"[: len(row["options"])]
        ids = [processor.tokenizer.convert_tokens_to_ids(letter) for letter in shown]
        letters.append(shown[int(logits[ids].argmax())])
    return letters


def test_options_are_scored_by_one_pass(model_folder, shorter, naive_letters):
    generated = answers(model_folder, shorter, 8)
    rows = shorter["artemo_all"]["test"]
    shown = [text[:1] in tuple("ABCD"[: len(row["options"])]) for text, row in zip(generated, rows)]
    # Some would begin with no letter that is shown, and the others with the most probable one.
    assert 8 < sum(shown) < len(rows) and len(set(naive_letters)) > 1
    assert all(a[0] == b for a, b, known in zip(generated, naive_letters, shown) if known)
    for batch_size in (1, 3, 8):
        model = VAEmotionLLM(pretrained=str(model_folder), batch_size=batch_size, device="cpu", scoring="options")
        model.task_dict = shorter
        results = model.generate_until(instances(shorter))
        assert [result.text for result in results] == naive_letters
        assert all(result.token_counts.output_tokens == 1 for result in results)


def test_what_asks_for_no_letter_is_generated(model_folder, documents):
    """Both in one call: each question about valence and arousal, and each about options."""
    found = {}
    for scoring in ("generate", "options"):
        model = VAEmotionLLM(pretrained=str(model_folder), batch_size=4, device="cpu", scoring=scoring)
        model.task_dict = documents
        numbers = instances(documents, to_messages=artemo.va_doc_to_messages)
        mixed = [request for pair in zip(numbers, instances(documents)) for request in pair]
        found[scoring] = [result.text for result in model.generate_until(mixed)]
    assert found["generate"][::2] == found["options"][::2] and max(map(len, found["options"][::2])) > 1
    assert {len(text) for text in found["options"][1::2]} == {1}


def test_letters_are_single_tokens(model_folder):
    tokenizer = VAEmotionLLMProcessor.from_pretrained(model_folder).tokenizer
    # Bytes: " A" is two tokens, and an accent two bytes.
    assert option_tokens(tokenizer, "AB") == {letter: tokenizer.encode(letter) for letter in "AB"}
    with pytest.raises(InputError, match="no token for the letter 'É' alone.*leave scoring=options out"):
        option_tokens(tokenizer, "AÉ")
    nano = build_processor(112, 14, 2).tokenizer
    assert all(nano.decode(ids) == letter for letter, ids in option_tokens(nano, "ABCD").items())


def test_the_most_probable_letter_is_that_of_an_option():
    tokens = {"A": [0, 4], "B": [1], "C": [2]}
    logits = torch.tensor([
        [0.0, 0.0, 5.0, 0.0, -9.0],  # C, where it is an option
        [0.0, 0.0, 5.0, 0.0, -9.0],  # else A, in two forms
        [0.0, 0.6, -9.0, 9.0, 0.0],  # A: e^0 + e^0 is more than e^0.6
        [0.0, 0.8, -9.0, 9.0, 0.0],
        [-200.0, -190.0, -195.0, 90.0, -200.0],  # all of them far from what the model would have said
    ])  # fmt: skip
    assert most_probable_letters(logits, ["ABC", "AB", "ABC", "ABC", "ABC"], tokens) == ["C", "A", "A", "B", "B"]
    equal = torch.zeros(1, 5)
    assert most_probable_letters(equal, ["CB"], tokens) == ["C"] and most_probable_letters(equal, ["BC"], tokens) == [
        "B"
    ]


def test_no_letter_is_chosen_from_what_is_no_number():
    logits = torch.zeros(2, 10)
    logits[1, 3] = float("nan")
    assert most_probable_letters(logits[:1], ["AB"], {"A": [1], "B": [3]}) == ["A"]
    with pytest.raises(FloatingPointError, match="dtype=bfloat16"):
        most_probable_letters(logits, ["AB", "AB"], {"A": [1], "B": [3]})

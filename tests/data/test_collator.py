import numpy as np
import pytest
import torch
from media_files import write_video, write_world
from PIL import Image
from training import make_model

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.data.collator import ConversationRenderer, Stage1Collator, Stage2Collator, build_inputs
from vaemotionllm.data.dataset import ClipDataset, ClipEncoder, Failure
from vaemotionllm.data.manifest import Clip, read_manifest
from vaemotionllm.data.samplers import SampleKey, ScheduledBatchSampler, modality_of_step, seeded_random
from vaemotionllm.model import media
from vaemotionllm.model.media import load_audio
from vaemotionllm.model.media_images import load_image
from vaemotionllm.train.instructions import Instruction


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def processor(model_path):
    return VAEmotionLLMProcessor.from_pretrained(model_path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return read_manifest(write_world(tmp_path_factory.mktemp("world"), clips=8))


def make_dataset(clips, processor, modalities=("visual", "audio"), **options):
    return ClipDataset(clips, ClipEncoder(processor, 4, 10.0), lambda step, clip: modalities, **options)


def row(prompt, tokens):
    return {"prompt": prompt, "tokens": tokens, "kind": "prompt"}


RESPONSES = {
    f"train-{i}": [row("Short?", [10, 11, 2]), row("A much longer prompt, is it not?", [12] * (i + 1))]
    for i in range(8)
}


def test_features_from_the_dataset_equal_the_processor(clips, processor):
    clip = clips[0]
    sample = make_dataset(clips, processor)[SampleKey(0, 0, 0)]
    text = ConversationRenderer(processor).prompt(["image", "audio"], "Which emotion?")
    built = build_inputs(processor, [text], [sample.media["visual"], sample.media["audio"]])
    expected = processor(
        text=[text], images=[load_image(clip.image)], audio=[load_audio(clip.audio)], padding=True, return_tensors="pt"
    )
    assert set(built) == set(expected)
    for name in expected:
        torch.testing.assert_close(built[name], expected[name])


@pytest.mark.parametrize("student_modalities", [{"audio": 1.0}, {"av": 1.0}])
def test_teacher_and_student_have_the_same_response_tokens(clips, processor, student_modalities):
    dataset = make_dataset(clips, processor)
    keys = [SampleKey(i, 0, 0) for i in (0, 2, 4, 6)]
    batch = Stage1Collator(processor, RESPONSES, student_modalities, seed=0)([dataset[key] for key in keys])
    teacher, student = batch["teacher"], batch["student"]
    assert batch["modality"] == next(iter(student_modalities))
    assert teacher["input_ids"].shape[1] != student["input_ids"].shape[1]  # the prompts' widths differ
    for row in range(len(keys)):
        in_teacher = teacher["input_ids"][row][teacher["response_mask"][row]].tolist()
        in_student = student["input_ids"][row][student["response_mask"][row]].tolist()
        assert in_teacher == in_student
        assert in_teacher in [found["tokens"] for found in RESPONSES[clips[keys[row].index].id]]
    for inputs in (teacher, student):
        assert (inputs["attention_mask"].bool() | ~inputs["response_mask"]).all()  # no response token is masked
    assert "input_features" not in teacher and "input_features" in student
    assert ("pixel_values" in student) == (batch["modality"] == "av")


def test_logits_at_the_mask_do_not_depend_on_the_batch(clips, processor, model_path):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(model_path).eval()
    dataset = make_dataset(clips, processor)
    collator = Stage1Collator(processor, RESPONSES, {"av": 1.0}, seed=0)
    samples = [dataset[SampleKey(i, 0, 0)] for i in (1, 3, 5)]
    together = collator(samples)["student"]
    counts = together["response_mask"].sum(1).tolist()
    with torch.no_grad():
        parts = model(**together, use_adapter=False).logits.split(counts)
        for sample, part in zip(samples, parts):
            alone = model(**collator([sample])["student"], use_adapter=False).logits
            torch.testing.assert_close(part, alone, atol=1e-4, rtol=1e-4)


def test_answers_end_with_the_end_token_and_are_the_template_s(processor):
    renderer = ConversationRenderer(processor)
    ids = renderer.answer_ids("joy")
    assert processor.tokenizer.decode(ids) == "joy<|im_end|>"
    prompt = renderer.prompt([], "?")
    whole = processor.apply_chat_template(
        [[{"role": "user", "content": [{"type": "text", "text": "?"}]},
          {"role": "assistant", "content": [{"type": "text", "text": "joy"}]}]],
        tokenize=False,
    )[0]  # fmt: skip
    assert whole.startswith(prompt + "joy<|im_end|>")


def test_stage2_labels_and_modality(clips, processor):
    dataset = make_dataset(clips, processor)
    without = clips[3].without_labels()
    labelled = ClipDataset([clips[1], without], dataset.encoder, lambda step, clip: ("visual", "audio"))
    collator = Stage2Collator(
        processor, lambda rng, clip, modality: Instruction(modality, "Which emotion?", clip.emotion or "none"), 0
    )
    batch = collator([labelled[SampleKey(i, 0, 0)] for i in range(2)])
    assert batch["modality"] == "av"
    inputs = batch["inputs"]
    answers = [
        processor.tokenizer.decode(ids[mask]) for ids, mask in zip(inputs["input_ids"], inputs["response_mask"])
    ]
    assert answers == ["calm<|im_end|>", "none<|im_end|>"]
    assert batch["valence"][0] == pytest.approx(0.54) and torch.isnan(batch["valence"][1])


def test_an_answer_that_holds_a_placeholder_is_refused_with_its_clip(clips, processor, model_path):
    ids = VAEmotionLLMForConditionalGeneration.config_class.from_pretrained(model_path).media_token_ids
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", processor.audio_token} == {*tokens}
    dataset = make_dataset(clips, processor)
    for token in tokens:
        collator = Stage2Collator(
            processor, lambda *given, answer=f"A {token} b": Instruction("", "Which?", answer), 0, media_token_ids=ids
        )
        error = collator([dataset[SampleKey(1, 0, 0)]])["error"]
        assert "'train-1'" in error and token in error


def test_a_bad_clip_becomes_an_error_in_the_batch(tmp_path, clips, processor):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    bad = Clip(id="bad", split="train", source="s", license="l", audio=str(broken), image=clips[0].image)
    dataset = make_dataset([clips[0], bad], processor)
    sample = dataset[SampleKey(1, 0, 0)]
    assert isinstance(sample, Failure)
    batch = Stage1Collator(processor, RESPONSES, {"audio": 1.0}, 0)([dataset[SampleKey(0, 0, 0)], sample])
    assert "'bad'" in batch["error"] and str(broken) in batch["error"]
    with pytest.raises(InputError, match="'bad'"):
        make_dataset([bad], processor, cache_media=True).fill_cache(("audio",), progress=False)


def test_the_cache_decodes_once(clips, processor, monkeypatch):
    dataset = make_dataset(clips, processor, cache_media=True)
    dataset.fill_cache(("visual", "audio"), progress=False)
    monkeypatch.setattr(ClipEncoder, "encode", lambda *_: pytest.fail("decoded again"))
    assert set(dataset[SampleKey(2, 5, 9)].media) == {"visual", "audio"}


# ---- samplers


def all_keys(epoch, clips=26, groups=None, **options):
    options = {"batch_size": 2, "accumulation": 1, "world_size": 1, "rank": 0, "seed": 5} | options
    sampler = ScheduledBatchSampler(groups or ["image"] * clips, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_ranks_and_accumulation_share_the_steps_of_one_process():
    whole = all_keys(1, batch_size=8)
    for ranks, accumulation in ((2, 1), (1, 4), (2, 2)):
        size = 8 // ranks // accumulation
        parts = [
            all_keys(1, batch_size=size, accumulation=accumulation, world_size=ranks, rank=rank)
            for rank in range(ranks)
        ]
        for step, batch in enumerate(whole):
            found = [
                key
                for part in parts
                for micro in part[step * accumulation : (step + 1) * accumulation]
                for key in micro
            ]
            assert sorted(found) == sorted(batch)


def test_an_epoch_has_no_repeats_and_epochs_differ():
    first, second = all_keys(0, batch_size=4), all_keys(1, batch_size=4)
    assert len(first) == 6
    assert len({key.index for batch in first for key in batch}) == 24
    assert [[k.index for k in b] for b in first] != [[k.index for k in b] for b in second]
    assert [b[0].step for b in first] == list(range(6)) and [b[0].step for b in second] == list(range(6, 12))


def test_a_step_holds_one_group():
    groups = ["image"] * 9 + ["video"] * 3
    batches = all_keys(0, groups=groups, batch_size=4)
    kinds = [{groups[key.index] for key in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert sorted(kind.pop() for kind in kinds) == [
        "image",
        "image",
        "video",
    ]  # three videos fill one step with a repeat


def test_modalities_follow_their_weights_and_the_seed():
    weights = {"audio": 3.0, "visual": 0.0, "av": 1.0}
    modalities = [modality_of_step(7, step, weights) for step in range(2000)]
    assert modalities == [modality_of_step(7, step, weights) for step in range(2000)]
    assert set(modalities) == {"audio", "av"} and np.mean([m == "audio" for m in modalities]) == pytest.approx(
        0.75, abs=0.04
    )
    assert modalities != [modality_of_step(8, step, weights) for step in range(2000)]
    assert seeded_random(1, "a", 2).integers(10**9) == seeded_random(1, "a", 2).integers(10**9)


LENGTHS = np.random.default_rng(1).integers(20, 400, 240)


def length_of(index, epoch, step):
    # In every third step a clip is the longer the shorter it is in the others.
    return int(LENGTHS[index]) if step % 3 else 500 - int(LENGTHS[index])


def steps_of_ranks(epoch=0, **options):
    """Step -> [rank][micro-batch] clips."""
    found = {}
    for rank in range(2):
        options = {"batch_size": 4, "accumulation": 5, "world_size": 2, "seed": 5} | options | {"rank": rank}
        sampler = ScheduledBatchSampler(["image"] * 160 + ["video"] * 80, **options)
        sampler.set_epoch(epoch)
        for row in sampler:
            found.setdefault(row[0].step, [[], []])[rank].append([key.index for key in row])
    return found


def test_clips_of_equal_length_share_a_batch_on_all_ranks():
    plain, sorted_ = steps_of_ranks(), steps_of_ranks(length_of=length_of)
    spread = {}
    for name, steps in (("plain", plain), ("sorted", sorted_)):
        rows = [(step, row) for step, ranks in steps.items() for rank in ranks for row in rank]
        lengths = [[length_of(index, 0, step) for index in row] for step, row in rows]
        spread[name] = np.mean([max(row) - min(row) for row in lengths])
    assert spread["sorted"] < 0.2 * spread["plain"]
    for step, ranks in sorted_.items():
        for one, two in zip(*ranks, strict=True):  # ranks that work at the same time have the same to do
            assert abs(length_of(one[0], 0, step) - length_of(two[0], 0, step)) < 120
        # A step learns from the clips that it would have had.
        clips = sorted(index for rank in ranks for row in rank for index in row)
        assert clips == sorted(index for rank in plain[step] for row in rank for index in row)
        assert len({index < 160 for index in clips}) == 1
    assert sorted(i for ranks in sorted_.values() for rank in ranks for row in rank for i in row) == list(range(240))


def test_rows_are_padded_on_the_right_to_the_longest(clips, processor):
    dataset = make_dataset(clips, processor)
    batch = Stage1Collator(processor, RESPONSES, {"audio": 1.0}, seed=0)(
        [dataset[SampleKey(i, 0, 0)] for i in range(8)]
    )
    student = batch["student"]
    lengths = student["attention_mask"].sum(1)
    assert student["input_ids"].shape[1] == lengths.max() > lengths.min()
    for name in ("attention_mask", "response_mask"):
        assert student[name].shape == student["input_ids"].shape
    for ids, attended, response, length in zip(
        student["input_ids"], student["attention_mask"], student["response_mask"], lengths, strict=True
    ):
        assert attended.tolist() == [1] * length + [0] * (len(ids) - length)
        places = response.nonzero().flatten()
        assert places[-1] == length - 1 and places.tolist() == list(range(int(places[0]), int(length)))
    assert batch["ids"] == [clip.id for clip in clips]


def test_audio_and_video_of_one_file_are_read_once(tmp_path, processor, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", 2.0))
    clip = Clip(id="a", split="train", source="s", license="CC0-1.0", audio=path, video=path, start_s=0.3, end_s=1.6)
    encoder, opened = ClipEncoder(processor, 4, 10.0), []
    apart = {medium: encoder.encode(clip, (medium,))[medium] for medium in ("visual", "audio")}
    open_av = media.open_av
    monkeypatch.setattr(media, "open_av", lambda *arguments: opened.append(arguments) or open_av(*arguments))
    together = encoder.encode(clip, ("visual", "audio"))
    assert len(opened) == 1
    for medium, features in apart.items():
        for name, value in features.inputs.items():
            assert torch.equal(value, together[medium].inputs[name])


def test_what_the_backbone_refuses_is_named_with_its_clip(tmp_path, processor):
    Image.new("RGB", (300, 1)).save(tmp_path / "wide.png")
    clip = Clip(id="wide one", split="train", source="s", license="CC0-1.0", image=str(tmp_path / "wide.png"))
    failure = make_dataset([clip], processor, ("visual",))[SampleKey(0, 0, 0)]
    assert isinstance(failure, Failure)
    assert "clip 'wide one'" in failure.message and "cannot be used by this backbone" in failure.message

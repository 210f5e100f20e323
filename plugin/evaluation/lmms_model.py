"""The lmms-eval chat model `vaemotionllm`."""

import os
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger as eval_logger
from PIL import Image
from tqdm import tqdm

from ..benchmark.prompts import MISSING
from ..model.loading import check_model_folder, load_model, load_processor
from ..model.processing_vaemotionllm import MediaFeatures
from ..utils import InputError
from .cli_exit import FAILURE, stop
from .encoded_media import MediaEncoder
from .media_pipeline import MediaPipeline
from .option_scoring import most_probable_letters, option_tokens
from .requests import Medium, Prompt, batches, cut, generation_arguments, read_request

SCORING = ("generate", "options")
ON_ERROR = ("stop", "report")
# Ours: on a machine of many cores a few threads are enough to stay ahead of one model.
MOST_WORKERS = 4


class VAEmotionLLM(lmms):
    """Answers with a VAEmotionLLM checkpoint; `--model vaemotionllm --model_args pretrained=DIR`.

    A batch may mix audio, visual, audio-visual and text requests. Answers do not depend on the batch size, up to
    rounding: on a CPU the weights are float32. Media are decoded ahead of the model in threads, and what the towers
    give of a clip is used again for its other questions.

    Args:
        pretrained: folder or Hub name of a VAEmotionLLM.
        batch_size: requests a batch.
        device: "cuda:0", "cpu", ...; the first GPU, or the CPU where there is none.
        dtype: dtype of the weights; float32 on a CPU, else what the checkpoint says.
        attn_implementation: attention backend of transformers.
        num_frames: frames taken from a video; what the processor says if not given.
        max_audio_s: longest sound that is accepted, in seconds; what the processor says if not given.
        use_adapter: whether EmoAdapter takes part; what the config says if not given.
        scoring: "generate", or "options": where a question asks for an option's letter, one pass over the prompt, and
            the letter with the highest probability among those of the options is the answer; all other questions are
            answered by generation. Nothing is unparsable then, and a model that would have answered in prose or not
            at all gets a letter too, so such scores do not compare with those of generation. See `option_scoring`.
        on_error: "stop" at a medium that cannot be read, or "report": its questions in tasks of artemo get
            `prompts.MISSING` for an answer, which these tasks count as missing, and are listed at the end. Tasks of
            others, some of which guess where they find no answer, still stop.
        workers: threads that decode media; by default one a core, at most 4.
        cache_gb: most memory for the states of clips that were seen, in GB of the CPU's memory; 0 keeps none.
        max_batch_size: ignored; lmms-eval passes it to every model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        num_frames: int | None = None,
        max_audio_s: float | None = None,
        use_adapter: bool | None = None,
        scoring: str = "generate",
        on_error: str = "stop",
        workers: int | None = None,
        cache_gb: float = 1.0,
        max_batch_size: int | None = None,
        **unknown,
    ) -> None:
        super().__init__()
        try:
            if unknown:
                raise InputError(
                    f"--model_args has {', '.join(unknown)}; allowed are pretrained, batch_size, device, dtype, "
                    "attn_implementation, num_frames, max_audio_s, use_adapter, scoring, on_error, workers, cache_gb."
                )
            if not str(batch_size).isdigit() or int(batch_size) < 1:
                raise InputError(f"batch_size is {batch_size!r}; give an integer of at least 1.")
            for name, value, allowed in (("scoring", scoring, SCORING), ("on_error", on_error, ON_ERROR)):
                if value not in allowed:
                    raise InputError(f"{name} is {value!r}; allowed are {' and '.join(allowed)}.")
            workers = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
            if not isinstance(workers, int) or workers < 1:
                raise InputError(f"workers is {workers!r}; give an integer of at least 1.")
            if not isinstance(cache_gb, (int, float)) or not cache_gb >= 0:
                raise InputError(f"cache_gb is {cache_gb!r}; give a number of at least 0.")
            check_model_folder(pretrained)
            accelerator = Accelerator()
            if accelerator.num_processes > 1:
                # One copy a process: lmms-eval shares out the documents by rank and gathers the scores.
                device = str(accelerator.device)
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            self.model = load_model(pretrained, device, dtype, attn_implementation)
            self.processor = load_processor(pretrained, num_frames, max_audio_s)
        except InputError as error:
            stop(error)
        self.batch_size = int(batch_size)
        self.use_adapter, self.scoring, self.on_error = use_adapter, scoring, on_error
        self._option_tokens: dict[str, list[int]] = {}
        self.encoder = MediaEncoder(self.model)
        self.pipeline = MediaPipeline(self._decode, self.encoder, workers, int(cache_gb * 1e9))

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests. What fails, a medium or a batch, ends the evaluation.

        With `on_error="report"` a medium that cannot be read does not: see the class.
        """
        results: list[GenerationResult | None] = [None] * len(requests)
        try:
            prompts = [read_request(i, request, self.task_dict) for i, request in enumerate(requests)]
            if self.scoring == "options":
                self._option_tokens = option_tokens(
                    self.tokenizer, max((p.letters for p in prompts), key=len, default="")
                )
        except InputError as error:
            stop(error)
        except Exception as error:  # of the task, or of a row that its data set cannot decode
            stop(RuntimeError(f"reading the questions failed with {type(error).__name__}: {error}"), FAILURE)
        if self.scoring == "options":
            count = sum(bool(prompt.letters) for prompt in prompts)
            eval_logger.info(f"{count} of {len(prompts)} questions are answered by their options' letters.")
        plan = batches(prompts, self.batch_size, by_options=self.scoring == "options")
        started, new_tokens, empty = time.monotonic(), 0, 0
        missing: list[InputError] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for batch, media in zip(plan, self._media_of(plan)):
                for prompt in batch:
                    problem = _error_of(prompt, media)
                    if problem is not None:
                        if self.on_error == "stop" or not prompt.counts_missing:
                            stop(problem)
                        missing.append(problem)
                        results[prompt.position] = GenerationResult(text=MISSING, token_counts=TokenCounts())
                readable = [prompt for prompt in batch if results[prompt.position] is None]
                for prompt, answer, counts in self._answer(readable, media) if readable else ():
                    results[prompt.position] = GenerationResult(text=answer, token_counts=counts)
                    new_tokens += counts.output_tokens or 0
                    empty += not answer
                bar.update(len(batch))
        if missing:
            lines = [f"  {error}" for error in missing]
            eval_logger.warning(
                f"{len(missing)} of {len(requests)} questions are missing, since their media cannot be read; they "
                "count as not right, and their share stands beside the scores as `missing`:\n" + "\n".join(lines)
            )
        if empty:
            eval_logger.warning(f"{empty} of {len(requests)} answers are empty: the model ended at once.")
        elapsed_s = time.monotonic() - started
        log_metrics(
            total_gen_tokens=new_tokens, total_elapsed_time=elapsed_s, avg_speed=new_tokens / max(elapsed_s, 1e-9)
        )
        return results  # type: ignore[return-value]

    def _media_of(self, plan: Sequence[Sequence[Prompt]]) -> Iterator[dict[Hashable, MediaFeatures | InputError]]:
        found = self.pipeline.run(plan)
        for batch in plan:
            try:
                yield next(found)
            except Exception as error:
                stop(_failed("preparing a batch", error, batch), FAILURE)

    def _decode(self, medium: Medium):
        from ..model.media import load_audio, load_image, load_video

        processor, source, start_s, end_s = self.processor, medium.open(), medium.start_s, medium.end_s
        on_disk = isinstance(source, (str, bytes))
        if medium.kind == "image":
            if not on_disk and not isinstance(source, Image.Image):
                raise InputError(f"an image of type {type(source).__name__}; give a path, bytes or a PIL image.")
            return processor.encode_image(load_image(source))
        if medium.kind == "video":
            if not on_disk:
                raise InputError(f"a video of type {type(source).__name__}; give a path or the bytes of a file.")
            frames, metadata = load_video(source, processor.num_frames, start_s, end_s)
            return processor.encode_video(frames, metadata.fps, metadata.indices)
        if on_disk:
            waveform = load_audio(source, processor.sampling_rate, processor.max_audio_s, start_s, end_s)
            return processor.encode_audio(waveform)
        waveform, rate_hz = source if isinstance(source, tuple) else (source, processor.sampling_rate)
        begin, end = (None if at_s is None else round(at_s * rate_hz) for at_s in (start_s, end_s))
        return processor.encode_audio(np.asarray(waveform)[..., begin:end], rate_hz)

    def _answer(
        self, batch: Sequence[Prompt], media: Mapping[Hashable, MediaFeatures | InputError]
    ) -> list[tuple[Prompt, str, TokenCounts]]:
        """Answers of a batch, all of it by options or all of it by generation."""
        arguments, until = generation_arguments(batch[0].generation)
        by_options = self.scoring == "options" and bool(batch[0].letters)
        if by_options:
            # Beams and the like, of the task or of the checkpoint, have no part in it.
            arguments, _ = generation_arguments({"max_new_tokens": 1, "num_beams": 1})
            arguments |= {"output_logits": True, "return_dict_in_generate": True}
        if self.use_adapter is not None:
            arguments["use_adapter"] = self.use_adapter
        try:
            inputs = self._assemble(batch, media)
            with torch.inference_mode():
                generated = self.model.generate(
                    **self.encoder.generation_inputs(inputs), **arguments, pad_token_id=self.tokenizer.pad_token_id
                )
            if by_options:
                letters = [prompt.letters for prompt in batch]
                texts = most_probable_letters(generated.logits[0], letters, self._option_tokens)
                new_tokens = [1] * len(batch)
            else:
                new = generated[:, inputs["input_ids"].shape[1] :]  # (B, new), padded on the right after the end
                texts = [cut(text, until) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
                new_tokens = (new != self.tokenizer.pad_token_id).sum(1).tolist()
        except Exception as error:
            stop(_failed("generation", error, batch), FAILURE)
        read = inputs["attention_mask"].sum(1).tolist()
        counts = [TokenCounts(input_tokens=n, output_tokens=m) for n, m in zip(read, new_tokens)]
        return list(zip(batch, texts, counts, strict=True))

    def _assemble(self, batch: Sequence[Prompt], media: Mapping[Hashable, MediaFeatures | InputError]):
        texts = [
            self.processor.apply_chat_template(prompt.conversation, tokenize=False, add_generation_prompt=True)
            for prompt in batch
        ]
        encoded = [media[medium.identity] for prompt in batch for medium in prompt.media]
        return self.processor.assemble(texts, encoded, padding_side="left")

    def loglikelihood(self, requests: list[Instance]):
        raise NotImplementedError(
            "The model vaemotionllm answers by generation; tasks with output_type loglikelihood or multiple_choice "
            "give chat models no messages. Take a task with output_type generate_until."
        )

    def generate_until_multi_round(self, requests: list[Instance]):
        raise NotImplementedError("The model vaemotionllm has no multi-round tasks; take one with generate_until.")


def _failed(what: str, error: Exception, batch: Sequence[Prompt]) -> RuntimeError:
    names = "; ".join(prompt.name for prompt in batch)
    return RuntimeError(f"{what} failed with {type(error).__name__}: {error}. Batch: {names}")


def _error_of(prompt: Prompt, media: Mapping[Hashable, MediaFeatures | InputError]) -> InputError | None:
    """The first error among a prompt's media, with the item's name."""
    errors = (found for medium in prompt.media if isinstance(found := media[medium.identity], InputError))
    error = next(errors, None)
    if error is None:
        return None
    named = InputError(f"{prompt.name}: {error}")
    named.__cause__ = error
    return named

"""The lmms-eval chat model `vaemotionllm`."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger as eval_logger
from tqdm import tqdm

from ..errors import InputError
from .cli_exit import FAILURE, stop
from .loading import check_model_folder, load_model, load_processor
from .requests import Medium, Prompt, batches, cut, generation_arguments, read_request

CACHED_MEDIA = 256


class VAEmotionLLM(lmms):
    """Answers with a VAEmotionLLM checkpoint; `--model vaemotionllm --model_args pretrained=DIR`.

    A batch may mix audio, visual, audio-visual and text requests. Answers do not depend on the batch size, up to
    rounding: on a CPU the weights are float32.

    Args:
        pretrained: folder or Hub name of a VAEmotionLLM.
        batch_size: requests a batch.
        device: "cuda:0", "cpu", ...; the first GPU, or the CPU where there is none.
        dtype: dtype of the weights; float32 on a CPU, else what the checkpoint says.
        attn_implementation: attention backend of transformers.
        num_frames: frames taken from a video; what the processor says if not given.
        max_audio_s: longest sound that is accepted, in seconds; what the processor says if not given.
        use_adapter: whether EmoAdapter takes part; what the config says if not given.
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
        max_batch_size: int | None = None,
        **unknown,
    ) -> None:
        super().__init__()
        try:
            if unknown:
                raise InputError(
                    f"--model_args has {', '.join(unknown)}; allowed are pretrained, batch_size, device, dtype, "
                    "attn_implementation, num_frames, max_audio_s, use_adapter."
                )
            if not str(batch_size).isdigit() or int(batch_size) < 1:
                raise InputError(f"batch_size is {batch_size!r}; give an integer of at least 1.")
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
        self.use_adapter = use_adapter
        self._media: OrderedDict[tuple, object] = OrderedDict()

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
        """Answers in the order of the requests. What fails, a medium or a batch, ends the evaluation."""
        results: list[GenerationResult | None] = [None] * len(requests)
        try:
            prompts = [read_request(i, request, self.task_dict) for i, request in enumerate(requests)]
        except InputError as error:
            stop(error)
        plan = list(batches(prompts, self.batch_size))
        started, new_tokens, empty = time.monotonic(), 0, 0
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        # While the model answers one batch, another thread decodes the media of the next.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="media") as pool, bar:
            ahead = pool.submit(self._encode, plan[0]) if plan else None
            for number, batch in enumerate(plan):
                try:
                    inputs = ahead.result()  # type: ignore[union-attr]
                except InputError as error:
                    stop(error)
                except Exception as error:
                    stop(_failed("preparing a batch", error, batch), FAILURE)
                if number + 1 < len(plan):
                    ahead = pool.submit(self._encode, plan[number + 1])
                for prompt, answer, counts in self._answer(batch, inputs):
                    results[prompt.position] = GenerationResult(text=answer, token_counts=counts)
                    new_tokens += counts.output_tokens or 0
                    empty += not answer
                bar.update(len(batch))
        if empty:
            eval_logger.warning(f"{empty} of {len(requests)} answers are empty: the model ended at once.")
        elapsed_s = time.monotonic() - started
        log_metrics(
            total_gen_tokens=new_tokens, total_elapsed_time=elapsed_s, avg_speed=new_tokens / max(elapsed_s, 1e-9)
        )
        return results  # type: ignore[return-value]

    def _encode(self, batch: Sequence[Prompt]):
        """Inputs of a batch, on the CPU; errors name the item."""
        texts, media = [], []
        for prompt in batch:
            texts.append(
                self.processor.apply_chat_template(prompt.conversation, tokenize=False, add_generation_prompt=True)
            )
            for medium in prompt.media:
                try:
                    media.append(self._features(medium))
                except InputError as error:
                    raise InputError(f"{prompt.name}: {error}") from error
        return self.processor.assemble(texts, media, padding_side="left")

    def _features(self, medium: Medium):
        """Features of a medium; the last ones are kept, since several questions are about one clip."""
        key = medium.key
        if key is not None and key in self._media:
            self._media.move_to_end(key)
            return self._media[key]
        features = self._decode(medium)
        if key is not None:
            self._media[key] = features
            if len(self._media) > CACHED_MEDIA:
                self._media.popitem(last=False)
        return features

    def _decode(self, medium: Medium):
        from ..data.media import load_audio, load_image, load_video

        processor, source, start_s, end_s = self.processor, medium.source, medium.start_s, medium.end_s
        on_disk = isinstance(source, (str, bytes))
        if medium.kind == "image":
            return processor.encode_image(load_image(source) if on_disk else source.convert("RGB"))
        if medium.kind == "video":
            if not on_disk:
                raise InputError(f"a video of type {type(source).__name__}; give a path or the bytes of a file.")
            frames, metadata = load_video(source, processor.num_frames, start_s, end_s)
            return processor.encode_video(frames, metadata.fps, metadata.indices)
        if on_disk:
            waveform = load_audio(source, processor.sampling_rate, processor.max_audio_s, start_s, end_s)
            return processor.encode_audio(waveform)
        return processor.encode_audio(*source) if isinstance(source, tuple) else processor.encode_audio(source)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Prompt], inputs):
        arguments, until = generation_arguments(batch[0].generation)
        if self.use_adapter is not None:
            arguments["use_adapter"] = self.use_adapter
        try:
            inputs = inputs.to(self.device)
            generated = self.model.generate(
                **inputs,
                **arguments,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        except Exception as error:
            stop(_failed("generation", error, batch), FAILURE)
        width = inputs["input_ids"].shape[1]
        for row, prompt in enumerate(batch):
            tokens = generated[row, width:]  # (new tokens,), padded on the right after the end of the answer
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            counts = TokenCounts(
                input_tokens=int(inputs["attention_mask"][row].sum()),
                output_tokens=int((tokens != self.tokenizer.pad_token_id).sum()),
            )
            yield prompt, cut(text, until), counts

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

"""The lmms-eval chat model `vaemotionllm`."""

import os
import time
from collections.abc import Mapping, Sequence

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
from ..model.media import load_audio, load_video
from ..model.media_images import load_image
from ..model.processing_vaemotionllm import MediaFeatures
from ..utils import InputError
from .media_cache import MediaEncoder, MediaPipeline
from .refusals import stopping
from .requests import Medium, Request, batches, cut, generation_arguments, read_request

# Ours: on a machine of many cores a few threads are enough to stay ahead of one model.
MOST_WORKERS = 4
# Ours: of the states of some 100 videos, or more audio and images.
MOST_BYTES = 10**9


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
        max_audio_s: longest audio that is accepted, in seconds; what the processor says if not given.
        use_adapter: whether EmoAdapter takes part; what the config says if not given.
        on_error: "stop" at a medium that cannot be read, or "report": its questions in tasks of artemo get
            `prompts.MISSING` for an answer, which these tasks count as missing, and are listed at the end. Tasks of
            others, some of which guess where they find no answer, still stop.
    """

    is_simple = False
    scoring = "generate"  # for the results file, see `run_metadata`

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
        on_error: str = "stop",
        **unknown,
    ) -> None:
        super().__init__()
        with stopping("loading the model"):
            unknown.pop("max_batch_size", None)  # lmms-eval passes it to every model
            if unknown:
                raise InputError(
                    f"--model_args has {', '.join(unknown)}; allowed are pretrained, batch_size, device, dtype, "
                    "attn_implementation, num_frames, max_audio_s, use_adapter, on_error."
                )
            if not str(batch_size).isdigit() or int(batch_size) < 1:
                raise InputError(f"batch_size is {batch_size!r}; give an integer of at least 1.")
            if on_error not in ("stop", "report"):
                raise InputError(f"on_error is {on_error!r}; allowed are stop and report.")
            check_model_folder(pretrained)
            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            if self._world_size > 1:
                # One copy a process: lmms-eval shares out the documents by rank and gathers the scores.
                device = str(self.accelerator.device)
            self.model = load_model(pretrained, device, dtype, attn_implementation)
            self.processor = load_processor(pretrained, num_frames, max_audio_s)
        self.batch_size = int(batch_size)
        self.use_adapter, self.on_error = use_adapter, on_error
        self.encoder = MediaEncoder(self.model)
        self.pipeline = MediaPipeline(self._decode, self.encoder, min(MOST_WORKERS, os.cpu_count() or 1), MOST_BYTES)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests. What fails, a medium or a batch, ends the evaluation.

        With `on_error="report"` a medium that cannot be read does not: see the class.
        """
        with stopping("parsing the questions"):
            wanted = [read_request(i, request, self.task_dict) for i, request in enumerate(requests)]
            plan = batches(wanted, self.batch_size)
            for batch in plan:
                generation_arguments(batch[0].generation)  # before the first is answered
        encoded = self.pipeline.run(plan)
        started = time.monotonic()
        missing: list[str] = []
        results: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for batch in plan:
                with stopping(f"the batch of {'; '.join(request.name for request in batch)}"):
                    media = next(encoded)
                    readable = []
                    for request in batch:
                        errors = [found for medium in request.media if isinstance(found := media[medium], InputError)]
                        if not errors:
                            readable.append(request)
                        elif self.on_error == "report" and request.counts_missing:
                            missing.append(f"{request.name}: {errors[0]}")
                            results[request.position] = GenerationResult(text=MISSING, token_counts=TokenCounts())
                        else:
                            raise InputError(f"{request.name}: {errors[0]}")
                    results |= self._answer(readable, media) if readable else {}
                bar.update(len(batch))
        if missing:
            eval_logger.warning(
                f"{len(missing)} of {len(requests)} questions are missing, since their media cannot be read; they "
                "count as not right, and their share stands beside the scores as `missing`:"
                + "".join(f"\n  {text}" for text in missing)
            )
        elapsed_s = time.monotonic() - started
        tokens = sum(result.token_counts.output_tokens or 0 for result in results.values())
        log_metrics(total_gen_tokens=tokens, total_elapsed_time=elapsed_s, avg_speed=tokens / max(elapsed_s, 1e-9))
        return [results[position] for position in range(len(requests))]

    def _decode(self, medium: Medium) -> MediaFeatures:
        source = medium.source if isinstance(medium.source, str) else medium.source()
        processor, part = self.processor, (medium.start_s, medium.end_s)
        if isinstance(source, Image.Image):
            return processor.encode_image(load_image(source))  # which refuses one that is cut off
        if part == (None, None):
            return processor.encode_media(medium.kind, source)
        with processor.limits():
            if medium.kind == "video":
                frames, metadata = load_video(source, processor.num_frames, *part)
                return processor.encode_video(frames, metadata.fps, metadata.indices)
            return processor.encode_audio(load_audio(source, processor.sampling_rate, processor.max_audio_s, *part))

    def _answer(
        self, batch: Sequence[Request], media: Mapping[Medium, MediaFeatures | InputError]
    ) -> dict[int, GenerationResult]:
        """Answers of a batch by the requests' positions."""
        arguments, until = generation_arguments(batch[0].generation)
        arguments["suppress_tokens"] = [*(arguments.get("suppress_tokens") or ()), *self.model.suppressed_tokens]
        if self.use_adapter is not None:
            arguments["use_adapter"] = self.use_adapter
        texts = [
            self.processor.apply_chat_template(request.conversation, tokenize=False, add_generation_prompt=True)
            for request in batch
        ]
        parts = [media[medium] for request in batch for medium in request.media]
        inputs = self.processor.assemble(texts, parts, padding_side="left")
        pad, decode = self.processor.tokenizer.pad_token_id, self.processor.tokenizer.batch_decode
        with torch.inference_mode():
            generated = self.model.generate(**self.encoder.generation_inputs(inputs), **arguments, pad_token_id=pad)
        new = generated[:, inputs["input_ids"].shape[1] :]  # (B, new), padded on the right after the end
        read, written = inputs["attention_mask"].sum(1).tolist(), (new != pad).sum(1).tolist()
        results = {}
        for request, answer, n, m in zip(batch, decode(new, skip_special_tokens=True), read, written, strict=True):
            counts = TokenCounts(input_tokens=n, output_tokens=m)
            results[request.position] = GenerationResult(text=cut(answer, until), token_counts=counts)
        return results

    def loglikelihood(self, requests: list[Instance]):
        raise NotImplementedError("vaemotionllm answers by generation; take a task with output_type generate_until.")

    generate_until_multi_round = loglikelihood

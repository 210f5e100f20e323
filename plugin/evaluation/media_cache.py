"""Media of an evaluation: decoded ahead of the model in threads, and encoded once by its towers.

The towers take each medium by itself, so their states may be kept and used again for another question about the same
clip; only the LLM is given the question.
"""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from ..model.processing_vaemotionllm import MediaFeatures
from ..utils import InputError
from .requests import Medium, Request

VISUAL = ("image", "video")
# What one question's batch needs of the states, beside `pooler_output`: Qwen3-VL's features of inner layers.
_DEEPSTACK = "deepstack_features"
_IGNORED = ("last_hidden_state", "hidden_states", "attentions", "pooler_output", _DEEPSTACK)
# Questions whose media are decoded while the model answers, for each thread; at least one whole batch.
QUESTIONS_AHEAD = 2


class MediaEncoder:
    """Runs a model's audio tower and vision tower over media.

    Encoded media are `MediaFeatures` as well, so the processor assembles them: `audio_states` (M, projector_stride *
    D_audio) stands in place of `input_features`, and `image_states` or `video_states` (N, 1 + L, D) in place of the
    pixels, with L the layers that the backbone takes features of beside the last one (0 for most), and N in
    `image_num_tokens` or `video_num_tokens` (1,).

    Args:
        model: a `VAEmotionLLMForConditionalGeneration`. Where its backbone does not take states in place of pixels
            (`mm_encoder_outputs`), or gives them in a form that is not known, pixels stay as they are.
    """

    def __init__(self, model):
        self.model = model
        self._forms: dict[str, tuple[type, bool]] = {}  # by kind: the output's type, and whether one tensor
        takes_states = "mm_encoder_outputs" in inspect.signature(model.vlm.forward).parameters
        self._visual = {
            kind: function
            for kind in VISUAL
            if takes_states and (function := getattr(model.vlm.base_model, f"get_{kind}_features", None)) is not None
        }

    @torch.inference_mode()
    def encode(self, media: Sequence[MediaFeatures]) -> list[MediaFeatures]:
        """The media in their order, encoded; those of one kind and shape in one pass."""
        encoded = list(media)
        groups: dict[tuple, list[int]] = {}
        for position, medium in enumerate(media):
            # A tower takes rows of one shape; some backbones cut images into more or fewer tiles.
            shapes = tuple((name, value.shape[1:]) for name, value in medium.inputs.items())
            groups.setdefault((medium.kind, shapes), []).append(position)
        for (kind, _), positions in groups.items():
            if kind == "audio" or kind in self._visual:
                alike = [media[position] for position in positions]
                found = self._encode_audio(alike) if kind == "audio" else self._encode_visual(kind, alike)
                for position, medium in zip(positions, found):
                    encoded[position] = medium
        return encoded

    def generation_inputs(self, inputs: dict) -> dict:
        """The assembled inputs of a batch as `generate` takes them."""
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        outputs = {}
        for kind in self._forms:
            states = inputs.pop(f"{kind}_states", None)
            if states is not None:
                # An entry a medium, as the tower gives them: with beams or several answers `generate` repeats entries.
                num_tokens = inputs.pop(f"{kind}_num_tokens").tolist()
                pooled, *deeper = (layer.split(num_tokens) for layer in states.unbind(1))  # (1 + L) x media x (n, D)
                form, one_tensor = self._forms[kind]
                outputs[kind] = form(
                    pooler_output=torch.stack(pooled) if one_tensor else pooled,
                    **({_DEEPSTACK: [list(layer) for layer in deeper]} if deeper else {}),
                )
        return inputs | ({"mm_encoder_outputs": outputs} if outputs else {})

    def _encode_audio(self, media: Sequence[MediaFeatures]) -> list[MediaFeatures]:
        features = torch.cat([medium.inputs["input_features"] for medium in media])  # (W, ...)
        num_tokens = torch.cat([medium.inputs["audio_num_tokens"] for medium in media])  # (W,)
        states = self.model.get_audio_states(features.to(self.model.device))
        stacked = self.model.audio_projector.stack(states, num_tokens)  # (M, projector_stride * D_audio)
        parts = stacked.split([int(medium.inputs["audio_num_tokens"].sum()) for medium in media])
        return [_with_states(medium, part, ("input_features",)) for medium, part in zip(media, parts)]

    def _encode_visual(self, kind: str, media: Sequence[MediaFeatures]) -> list[MediaFeatures]:
        function = self._visual[kind]
        names = [name for name in inspect.signature(function).parameters if name in media[0].inputs]
        joined = {name: torch.cat([medium.inputs[name] for medium in media]).to(self.model.device) for name in names}
        output = function(**joined, return_dict=True)
        parts = _parts(output, [medium.replacement.count(medium.placeholder) for medium in media])
        if parts is None:
            del self._visual[kind]
            return list(media)
        self._forms[kind] = type(output), isinstance(output.pooler_output, torch.Tensor)
        pixels = [name for name in names if "pixel_values" in name]
        return [
            _with_states(medium, part, pixels, {f"{kind}_num_tokens": torch.tensor([len(part)])})
            for medium, part in zip(media, parts)
        ]


def _parts(output, num_tokens: Sequence[int]) -> list[torch.Tensor] | None:
    """Each medium's states (N, 1 + L, D); None where the output is not of a known form."""
    unknown = [name for name, value in output.items() if value is not None and name not in _IGNORED]
    layers = [output.pooler_output, *(getattr(output, _DEEPSTACK, None) or [])]
    if unknown or any([len(part) for part in layer] != list(num_tokens) for layer in layers):
        return None
    return [torch.stack([layer[i] for layer in layers], dim=1) for i in range(len(num_tokens))]


def _with_states(
    medium: MediaFeatures, states: torch.Tensor, replaced: Sequence[str], beside: dict[str, torch.Tensor] | None = None
) -> MediaFeatures:
    kept = {name: value for name, value in medium.inputs.items() if name not in replaced}
    # A copy: a part of the batch's states would keep all of them in memory.
    return replace(medium, inputs={**kept, f"{medium.kind}_states": states.to("cpu", copy=True), **(beside or {})})


class EncodedMedia(OrderedDict[Medium, MediaFeatures]):
    """The encoded media that were used last, up to `max_bytes`; 0 keeps nothing."""

    def __init__(self, max_bytes: int):
        super().__init__()
        self.max_bytes, self.num_bytes = max_bytes, 0

    def add(self, key: Medium, medium: MediaFeatures) -> None:
        if key not in self:
            self.num_bytes += _num_bytes(medium)
        self[key] = medium
        self.move_to_end(key)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= _num_bytes(self.popitem(last=False)[1])


def _num_bytes(medium: MediaFeatures) -> int:
    return sum(value.nbytes for value in medium.inputs.values())


class MediaPipeline:
    """Gives the encoded media of batch after batch.

    Args:
        decode: the features of one medium; raises InputError where it cannot be used. Called in threads.
        encoder: runs the towers, in the caller's thread.
        workers: threads that decode.
        max_bytes: most that is kept of encoded media for later batches.
    """

    def __init__(self, decode: Callable[[Medium], MediaFeatures], encoder: MediaEncoder, workers: int, max_bytes: int):
        self.decode, self.encoder, self.workers = decode, encoder, workers
        self.kept = EncodedMedia(max_bytes)

    def run(self, plan: Sequence[Sequence[Request]]) -> Iterator[dict[Medium, MediaFeatures | InputError]]:
        """For each batch its media, each encoded or the error that it met.

        Raises:
            Exception: what `decode` raises beside InputError, at the batch that holds the medium.
        """
        ahead = max(1, math.ceil(QUESTIONS_AHEAD * self.workers / max(map(len, plan), default=1)))  # batches
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="media")
        under_way: dict[Medium, Future] = {}
        started = 0
        try:
            for number, batch in enumerate(plan):
                while started < min(number + 1 + ahead, len(plan)):
                    for medium in _media_of(plan[started]):
                        if medium not in self.kept and medium not in under_way:
                            under_way[medium] = pool.submit(self.decode, medium)
                    started += 1
                yield self._finish(batch, under_way)
        finally:
            # An error is raised at once, not after the rest of its batch.
            pool.shutdown(cancel_futures=True)

    def _finish(
        self, batch: Sequence[Request], under_way: dict[Medium, Future]
    ) -> dict[Medium, MediaFeatures | InputError]:
        media: dict[Medium, MediaFeatures | InputError] = {}
        decoded: dict[Medium, MediaFeatures] = {}
        for medium in _media_of(batch):
            if medium in self.kept:
                media[medium] = self.kept[medium]
                continue
            try:
                # What was kept when the batch was started may have been dropped since.
                decoded[medium] = under_way.pop(medium).result() if medium in under_way else self.decode(medium)
            except InputError as error:
                media[medium] = error
        media |= zip(decoded, self.encoder.encode(list(decoded.values())))
        for medium, found in media.items():
            if isinstance(medium.source, str) and not isinstance(found, InputError):
                self.kept.add(medium, found)
        return media


def _media_of(batch: Sequence[Request]) -> dict[Medium, None]:
    """The media of a batch, each once, in its order."""
    return dict.fromkeys(medium for request in batch for medium in request.media)

"""The media of a list of batches, decoded ahead of the model in threads and encoded once a clip."""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from ..model.processing_vaemotionllm import MediaFeatures
from ..utils import InputError
from .encoded_media import EncodedMedia, MediaEncoder
from .requests import Medium, Prompt

# Questions whose media are decoded while the model answers, for each thread; at least one whole batch.
QUESTIONS_AHEAD = 2


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

    def run(self, plan: Sequence[Sequence[Prompt]]) -> Iterator[dict[Hashable, MediaFeatures | InputError]]:
        """For each batch its media by `Medium.identity`, each encoded or the error that it met.

        Raises:
            Exception: what `decode` raises beside InputError, at the batch that holds the medium.
        """
        ahead = max(1, math.ceil(QUESTIONS_AHEAD * self.workers / max(map(len, plan), default=1)))  # batches
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="media")
        started: deque[dict[Hashable, Future]] = deque()
        try:
            for number, batch in enumerate(plan):
                while len(started) <= ahead and number + len(started) < len(plan):
                    started.append(self._start(plan[number + len(started)], started, pool))
                yield self._finish(batch, started.popleft())
        finally:
            # An error is told at once, not after the rest of its batch.
            pool.shutdown(cancel_futures=True)

    def _start(self, batch: Sequence[Prompt], started: Sequence[Mapping], pool: Executor) -> dict[Hashable, Future]:
        """Decoding of what is neither kept nor under way."""
        futures: dict[Hashable, Future] = {}
        for medium in (medium for prompt in batch for medium in prompt.media):
            key = medium.identity
            if key not in futures and key not in self.kept:
                under_way = next((others[key] for others in started if key in others), None)
                futures[key] = under_way or pool.submit(self.decode, medium)
        return futures

    def _finish(
        self, batch: Sequence[Prompt], futures: Mapping[Hashable, Future]
    ) -> dict[Hashable, MediaFeatures | InputError]:
        media: dict[Hashable, MediaFeatures | InputError] = {}
        decoded: dict[Hashable, MediaFeatures] = {}
        for medium in (medium for prompt in batch for medium in prompt.media):
            key = medium.identity
            if key in media or key in decoded:
                continue
            kept = self.kept.get(key)
            if kept is not None:
                media[key] = kept
                continue
            try:
                # What was kept when the batch was started may have had to go since.
                decoded[key] = futures[key].result() if key in futures else self.decode(medium)
            except InputError as error:
                media[key] = error
        for key, encoded in zip(decoded, self.encoder.encode(list(decoded.values()))):
            media[key] = encoded
        for medium in (medium for prompt in batch for medium in prompt.media):
            found = media[medium.identity]
            if medium.key is not None and not isinstance(found, InputError):
                self.kept.add(medium.key, found)
        return media

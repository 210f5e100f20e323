"""Every forward runs the same modules on all ranks, and reaches every trained parameter, whatever its batch holds."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from .distributed import max_over_ranks


class SameModules:
    """Hooks that put silence or a blank picture, with weight 0, through the modules that a batch does not need.

    - Where audio parameters are trained, a batch without sound would leave their gradients unset: one process would
      skip them, and ZeRO-3 would apply those of an earlier step again.
    - Under ZeRO-3 every rank must gather the same weights in the same order, or all wait for ever: a rank then runs
      what any other rank's batch needs.

    Silence comes first and blank pictures before the decoder, where the model itself runs these modules. Pictures and
    films take the same way through a backbone's vision tower, so only the number of these ways counts.

    Args:
        model: a VAEmotionLLM.
        processor: its processor, which makes the silence and the blank picture.
        hears: whether audio parameters are trained.
    """

    def __init__(self, model, processor, hears: bool):
        self.model, self.hears = model, hears
        self.silence = processor.encode_audio([0.0] * processor.sampling_rate).inputs
        self.blank = processor.encode_image(Image.new("RGB", (64, 64))).inputs
        self.coordinator, self.last = None, None
        self.ways: tuple[int, int] | None = None  # through the audio and the vision tower, over all ranks
        self.blanks, self.nothing = 0, None

    def attach(self, engine=None) -> None:
        """Register the hooks.

        Args:
            engine: a DeepSpeed engine at ZeRO-3 around the model; None where ranks need not agree.
        """
        if engine is not None:
            self.coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
            # Before DeepSpeed's own hook, which opens the trace of this forward.
            self.model.register_forward_pre_hook(self.before_trace, with_kwargs=True, prepend=True)
        self.model.register_forward_pre_hook(self.before_model, with_kwargs=True)
        # Before DeepSpeed's, for which the decoder begins when vision has ended.
        self.model.get_decoder().register_forward_pre_hook(self.before_decoder, with_kwargs=True, prepend=True)

    def before_trace(self, model, args, kwargs):
        """Agree on the ways through the towers, and begin a new trace where they are not those of last time.

        ZeRO-3 prefetches weights in the order of the last trace. It would notice another way in the middle of it, with
        weights of the wrong one already gathered, and gather them again.
        """
        self.ways = max_over_ranks(self.own_ways(kwargs), kwargs["input_ids"].device)
        path = (*self.ways, torch.is_grad_enabled())
        if path != self.last and not self.coordinator.is_invalid_trace():
            self.coordinator._invalidate_trace()
        self.last = path

    def before_model(self, model, args, kwargs):
        audio, visual = self.ways or self.own_ways(kwargs)
        carried_audio, carried_visual = carried_ways(kwargs)
        self.blanks, self.nothing, self.ways = visual - carried_visual, None, None
        if audio > carried_audio:
            inputs = _to(self.silence, kwargs["input_ids"].device)
            self.nothing = 0.0 * model.get_audio_features(**inputs).pooler_output.sum()

    def before_decoder(self, decoder, args, kwargs):
        blanks, self.blanks, nothing, self.nothing = self.blanks, 0, self.nothing, None
        if blanks:
            with torch.no_grad():  # vision is frozen
                for _ in range(blanks):
                    self.model.vlm.get_image_features(**_to(self.blank, kwargs["inputs_embeds"].device))
        if nothing is None:
            return None
        embeds = kwargs["inputs_embeds"]
        return args, {**kwargs, "inputs_embeds": embeds + nothing.to(embeds.dtype)}

    def own_ways(self, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """What this rank needs: what its batch carries, and sound where that is trained."""
        audio, visual = carried_ways(kwargs)
        return int(audio or (self.hears and torch.is_grad_enabled())), visual


def carried_ways(kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """How often a batch runs through the audio and the vision tower: once for sound; for pictures, for films."""
    given = [name for name, value in kwargs.items() if value is not None]
    sound = "input_features" in given or "audio_states" in given
    return int(sound), sum(name.startswith("pixel_values") for name in given)


def _to(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}

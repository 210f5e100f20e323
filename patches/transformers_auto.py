"""Registers the VAEmotionLLM classes with the auto classes of transformers, without importing them.

`AutoConfig.register` and its like take classes, so the model's file, and with it half of transformers, would have to
be imported wherever `modeling_auto` is, and in the middle of other imports. Here the registries hold names instead
and import a class when it is first needed.
"""

import importlib
import sys
import warnings

MODEL_TYPE = "vaemotionllm"
PACKAGE = "vaemotionllm.model"
CONFIG = (f"{PACKAGE}.configuration_vaemotionllm", "VAEmotionLLMConfig")
MODEL = (f"{PACKAGE}.modeling_vaemotionllm", "VAEmotionLLMForConditionalGeneration")
PROCESSOR = (f"{PACKAGE}.processing_vaemotionllm", "VAEmotionLLMProcessor")

MODELING_AUTO = "transformers.models.auto.modeling_auto"
PROCESSING_AUTO = "transformers.models.auto.processing_auto"
CONFIGURATION_AUTO = "transformers.models.auto.configuration_auto"
# Registry in modeling_auto -> must it exist? Newer ones are used where they are there.
MODEL_MAPPINGS = {
    "MODEL_MAPPING": True,
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": True,
    "MODEL_FOR_MULTIMODAL_LM_MAPPING": False,
}


class Later:
    """A class that is imported when it is needed."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def load(self) -> type:
        return getattr(importlib.import_module(self.module), self.name)


class LazyClasses(dict):
    """A dict whose `Later` values turn into classes when they are read."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if isinstance(value, Later):
            value = value.load()
            super().__setitem__(key, value)
        return value

    def get(self, key, default=None):
        return self[key] if key in self else default

    def values(self):
        return [self[key] for key in self]

    def items(self):
        return [(key, self[key]) for key in self]

    def __iter__(self):
        # Overridden so that dict(self) goes through __getitem__ and copies classes, not names.
        return super().__iter__()

    def __reduce__(self):
        return dict, (self.items(),)


def _add(registry, key, later: Later) -> None:
    extra = getattr(registry, "_extra_content", None)
    if not isinstance(extra, dict):
        raise AttributeError(f"{type(registry).__name__} has no dict _extra_content")
    if not isinstance(extra, LazyClasses):
        lazy = LazyClasses()
        dict.update(lazy, extra)
        registry._extra_content = extra = lazy
    if key not in extra:
        dict.__setitem__(extra, key, later)


def _ready(name: str, loaded: str | None):
    """The module, unless it is absent or in the middle of its import; `loaded` has just run to its end."""
    module = sys.modules.get(name)
    if module is None or (name != loaded and getattr(module.__spec__, "_initializing", False)):
        return None
    return module


def apply(loaded: str | None = None) -> bool:
    """Registers with every auto module that is ready; called again when another one is.

    The registries of models and processors are keyed by the config class, so they wait for it: whoever loads a
    VAEmotionLLM has its config first, by `AutoConfig` or by an import of its own.
    """
    try:
        if auto := _ready(CONFIGURATION_AUTO, loaded):
            _add(auto.CONFIG_MAPPING, MODEL_TYPE, Later(*CONFIG))
        config_module = _ready(CONFIG[0], loaded)
        if config_module is None:
            return True
        config_class = getattr(config_module, CONFIG[1])
        if auto := _ready(MODELING_AUTO, loaded):
            for name, required in MODEL_MAPPINGS.items():
                if required or hasattr(auto, name):
                    _add(getattr(auto, name), config_class, Later(*MODEL))
        if auto := _ready(PROCESSING_AUTO, loaded):
            _add(auto.PROCESSOR_MAPPING, config_class, Later(*PROCESSOR))
    except AttributeError as error:
        warnings.warn(
            f"vaemotionllm: this release of transformers keeps its registries another way ({error}), so "
            "AutoModel.from_pretrained does not know VAEmotionLLM by itself. Use the classes by name: "
            "from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True

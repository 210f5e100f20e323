"""Waits for lmms_eval and transformers, and tells them about this package once they are imported.

Imported by the start-up line `vaemotionllm_startup.pth` in every interpreter of the environment, and by
`import vaemotionllm`. So it imports nothing but `sys`, costs well under a millisecond, and never raises.
"""

import sys

# Module whose import triggers a patch -> the patch's module in this package. Each patch has `apply(loaded) -> bool`.
TARGETS = {
    "lmms_eval": "lmms_eval_threads",
    "lmms_eval.tasks": "lmms_eval_tasks",
    "lmms_eval.evaluator": "lmms_eval_hearing",
    "lmms_eval.models.chat.huggingface": "lmms_eval_huggingface",
    "lmms_eval.models.simple.qwen2_5_omni": "lmms_eval_qwen2_5_omni",
    "lmms_eval.cli.power_utils": "lmms_eval_power",
    "transformers.models.auto.configuration_auto": "transformers_auto",
    "transformers.models.auto.modeling_auto": "transformers_auto",
    "transformers.models.auto.processing_auto": "transformers_auto",
    "transformers.pipelines.base": "transformers_pipelines",
    "vaemotionllm.model.configuration_vaemotionllm": "transformers_auto",
}


class PostImportHook:
    """A meta path finder that finds nothing itself: it lets the others find, and acts after the module has run."""

    def __init__(self):
        self._searching = set()

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in TARGETS or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            from importlib.util import find_spec

            spec = find_spec(fullname)
        except Exception:
            return None
        finally:
            self._searching.discard(fullname)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            apply(fullname)

        try:
            # On the instance only: the loader keeps its type, so that inspect and importlib.resources still work.
            spec.loader.exec_module = exec_module
        except AttributeError:
            return None
        return spec


def apply(fullname):
    """Runs the patch that waits for `fullname`. A failure is reported as a warning and changes nothing."""
    name = TARGETS[fullname]
    try:
        from importlib import import_module

        return import_module(f"vaemotionllm.patches.{name}").apply(fullname)
    except Exception as error:
        import warnings

        warnings.warn(f"vaemotionllm: the patch {name} could not be applied: {error!r}", RuntimeWarning, stacklevel=2)
        return False


def install():
    """Installs the hook once; what is already imported is patched at once."""
    if any(type(finder).__name__ == "PostImportHook" and finder.__module__ == __name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, PostImportHook())
    for fullname in TARGETS:
        if getattr(getattr(sys.modules.get(fullname), "__spec__", None), "_initializing", None) is False:
            apply(fullname)


install()

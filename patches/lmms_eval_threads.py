"""Lets the threads of OpenMP sleep early in processes of lmms-eval, before it imports torch."""

from vaemotionllm.utils import bound_spinning


def apply(loaded: str) -> bool:
    bound_spinning()
    return True

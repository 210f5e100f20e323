"""The prompt of a multiple-choice item: one wording for training, stage prompts and evaluation."""

from collections.abc import Sequence


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """The question, one lettered line an option, and the request for a letter."""
    lines = [question, *(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))]
    return "\n".join([*lines, "Answer with the option's letter."])

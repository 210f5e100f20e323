"""Answers to multiple-choice questions by the probability of the options' letters, from one pass over the prompt.

The first token of the answer is looked at. An option's probability is that of its letter, summed over the ways in
which a tokenizer writes it as one token, "A" and " A"; prompts end where the assistant's turn begins, so most models
put all of it on "A". Of equal probabilities the first option's counts. That is our choice; the common alternative, the
probability of the option's text, needs a pass for each option and favours short texts.
"""

from collections.abc import Mapping, Sequence

import torch

from ..utils import InputError


def option_tokens(tokenizer, letters: str) -> dict[str, list[int]]:
    """For each letter the ids of the single tokens that are that letter alone, with or without a space before it.

    Raises:
        InputError: the tokenizer has no such token for a letter.
    """
    found = {}
    for letter in letters:
        written = (tokenizer.encode(form, add_special_tokens=False) for form in (letter, f" {letter}"))
        # Not the unknown token, nor a byte of a letter that is made of several.
        ids = {ids[0] for ids in written if len(ids) == 1 and tokenizer.decode(ids).strip() == letter}
        if not ids:
            raise InputError(
                f"the tokenizer has no token for the letter {letter!r} alone, so options cannot be scored by their "
                "letters; leave scoring=options out."
            )
        found[letter] = sorted(ids)
    return found


def most_probable_letters(
    logits: torch.Tensor, letters: Sequence[str], tokens: Mapping[str, Sequence[int]]
) -> list[str]:
    """The letter of the most probable option of each question.

    Args:
        logits: (B, V) of the first token of the answer.
        letters: the letters of each question's options.
        tokens: ids by letter, see `option_tokens`.

    Raises:
        FloatingPointError: a letter's logit is not a number: such a model has no most probable letter.
    """
    # Unnormalized: all options share the denominator, and no small probability becomes 0.
    scores = logits.float().cpu()
    if scores[:, sorted({token for shown in tokens.values() for token in shown})].isnan().any():
        raise FloatingPointError(
            f"the logits of the options' letters are not numbers in {logits.dtype}; load the model in another dtype, "
            "such as dtype=bfloat16 or dtype=float32"
        )
    return [
        # max takes the first of equal ones.
        max(shown, key=lambda letter: float(row[list(tokens[letter])].logsumexp(0)))
        for row, shown in zip(scores, letters, strict=True)
    ]

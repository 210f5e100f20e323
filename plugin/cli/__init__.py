"""The command `vaemotionllm`: its commands in a file for each noun, imported only when one of them runs."""

import argparse


def positive(text: str) -> int:
    """An integer of at least 1; a type for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; at least 1 is needed")
    return number

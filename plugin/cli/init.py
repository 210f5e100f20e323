"""`vaemotionllm init`: bolts an audio encoder onto a vision-language model and saves the untrained whole."""

import argparse
from pathlib import Path

from ..utils import InputError, check_new, new_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vlm", required=True, metavar="DIR_OR_NAME", help="a transformers image-text-to-text model")
    parser.add_argument(
        "--audio", required=True, metavar="DIR_OR_NAME", help="a transformers audio encoder with its feature extractor"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for the model and its processor")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the new weights: projector, EmoAdapter (default 0)"
    )
    parser.add_argument(
        "--like", metavar="CONFIG", help="take model_fields, num_frames and max_audio_s from this training config"
    )
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="fields of VAEmotionLLMConfig")


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    check_new(out, "--out")  # before the model is made
    from ..config_file import parse_overrides, read_config

    like = read_config(args.like) if args.like else {}
    fields = {**(like.get("model_fields") or {}), **parse_overrides(args.fields)}

    import torch

    from ..model.modeling_vaemotionllm import VAEmotionLLMForConditionalGeneration
    from ..model.processing_vaemotionllm import VAEmotionLLMProcessor

    torch.manual_seed(args.seed)
    try:
        # The processor makes as many placeholders as the projector makes tokens.
        media = {name: like[name] for name in ("num_frames", "max_audio_s") if name in like}
        if "projector_stride" in fields:
            media["projector_stride"] = fields["projector_stride"]
        processor = VAEmotionLLMProcessor.from_backbone(args.vlm, args.audio, **media)
        model = VAEmotionLLMForConditionalGeneration.from_backbone(args.vlm, args.audio, **fields)
    except (OSError, ValueError) as error:
        raise InputError(f"--vlm {args.vlm} and --audio {args.audio} do not make a model: {error}") from error
    with new_folder(out, "--out") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{out}: {parameters / 1e6:.2f} M parameters, of which audio tower "
        f"{sum(p.numel() for p in model.audio_tower.parameters()) / 1e6:.2f} M, not yet trained to hear"
    )
    return 0

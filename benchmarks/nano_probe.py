"""Are the cues of the nano world there? Small supervised networks on log-mels and on frames, and their late fusion.

    python benchmarks/nano_probe.py                      # the world as it is
    python benchmarks/nano_probe.py --noise-free         # without expression noise and hidden content
    python benchmarks/nano_probe.py --world DIR          # a world that is on disk

Prints accuracy of content and emotion (8 classes; 4 options of the benchmark; quadrant of the valence-arousal space)
and CCC of valence and arousal for each modality; the last line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchaudio
from torch import nn
from torch.nn import functional as F

from vaemotionllm.model.media import load_audio, load_video
from vaemotionllm.model.media_images import load_image
from vaemotionllm.nano.clips import CONTENTS, EMOTIONS, WorldConfig
from vaemotionllm.nano.world import build_world


class Probe(nn.Module):
    """Four strided convolutions, mean over all positions, one linear head for all targets."""

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        layers, before = [], channels
        for after in (width, 2 * width, 3 * width, 4 * width):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.GELU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, len(CONTENTS) + len(EMOTIONS) + 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        content, emotion, point = self.head(self.body(x).mean((2, 3))).split([len(CONTENTS), len(EMOTIONS), 2], 1)
        return content, emotion, point


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    return float(2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def features(root: Path, rows: list[dict], mel) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels (N, 1, mels, frames) and four frames stacked as channels (N, 12, S, S)."""
    audio, images = [], []
    for row in rows:
        wave = torch.from_numpy(load_audio(root / row["audio"]))
        wave = F.pad(wave, (0, max(0, 36000 - len(wave))))[:36000]
        audio.append(torch.log10(mel(wave) + 1e-8)[None])
        if row.get("image"):
            frames = np.repeat(np.asarray(load_image(root / row["image"]))[None], 4, 0)
        else:
            frames = load_video(root / row["video"], 4)
            frames = frames[0] if isinstance(frames, tuple) else frames
        images.append(torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).flatten(0, 1))
    return torch.stack(audio) / 4 + 1, torch.stack(images).float() / 128 - 1


def fit(x, targets, epochs: int, seed: int) -> Probe:
    torch.manual_seed(seed)
    model = Probe(x.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    content, emotion, point = targets
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            c, e, p = model(x[batch])
            loss = F.cross_entropy(c, content[batch]) + F.cross_entropy(e, emotion[batch])
            loss = loss + 4 * F.mse_loss(p, point[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def scores(content, emotion, point, rows, items) -> dict[str, float]:
    """Content and emotion as log-probabilities (N, 8), point (N, 2), against labels and items of the same clips."""
    index = {row["id"]: i for i, row in enumerate(rows)}
    tables = {"content": (content, CONTENTS), "emotion": (emotion, EMOTIONS)}
    result = {}
    for aspect, (table, labels) in tables.items():
        truth = np.array([labels.index(row[aspect]) for row in rows])
        result[f"{aspect}_8"] = float((table.argmax(1) == truth).mean())
        hits = [
            max(item["options"], key=lambda o: table[index[item["clip_id"]], labels.index(o)]) == item["answer"]
            for item in items
            if item["aspect"] == aspect and item["modality"] == "av"
        ]
        result[f"{aspect}_4"] = float(np.mean(hits))
    valence, arousal = (np.array([row[name] for row in rows]) for name in ("valence", "arousal"))
    quadrant = ((point[:, 0] > 0) == (valence > 0)) & ((point[:, 1] > 0) == (arousal > 0))
    result |= {"quadrant": float(quadrant.mean())}
    result |= {"valence_ccc": ccc(point[:, 0], valence), "arousal_ccc": ccc(point[:, 1], arousal)}
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", help="folder of a world; default: a temporary one")
    parser.add_argument("--noise-free", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--train", type=int, default=2400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(args.world or Path(folder) / "world")
        if not args.world:
            quiet = {"expression_noise": 0.0, "hidden_probability": 0.0, "blend_probability": 0.0}
            config = WorldConfig(seed=args.seed, **(quiet if args.noise_free else {}))
            build_world(root, config=config, sizes={"train": args.train, "benchmark": 384})
        rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
        items = [json.loads(line) for line in (root / "benchmark" / "test.jsonl").read_text().splitlines()]
        train = [row for row in rows if row["split"] == "train"]
        test = [row for row in rows if row["split"] == "benchmark"]
        mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=640, hop_length=320, n_mels=64)
        data = {name: features(root, part, mel) for name, part in (("train", train), ("test", test))}
    targets = (
        torch.tensor([CONTENTS.index(row["content"]) for row in train]),
        torch.tensor([EMOTIONS.index(row["emotion"]) for row in train]),
        torch.tensor([[row["valence"], row["arousal"]] for row in train]),
    )
    outputs, result = {}, {}
    for number, name in enumerate(("audio", "visual")):
        model = fit(data["train"][number], targets, args.epochs, args.seed)
        with torch.no_grad():
            content, emotion, point = model(data["test"][number])
        outputs[name] = (content.log_softmax(1).numpy(), emotion.log_softmax(1).numpy(), point.numpy())
    # Late fusion: the modalities are independent given the labels, and the priors are flat.
    outputs["av"] = tuple(a * w + b * w for a, b, w in zip(outputs["audio"], outputs["visual"], (1, 1, 0.5)))
    for name, output in outputs.items():
        result[name] = scores(*output, test, items)
        print(name, result[name])
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""A small benchmark folder with real media, for tests."""

import json
from pathlib import Path

import media_files

CONTENTS = ("rain", "fire", "bell", "drum")
EMOTIONS = ("joyful", "tense", "sad", "calm")


def items_of(clip: int, folder: Path) -> list[dict]:
    """The six items of one clip: an image with a WAV, or every third time an mp4 with audio."""
    name = f"clip-{clip}"
    if clip % 3 == 2:
        media_files.write_video(folder / "media" / f"{name}.mp4", seed=clip, pitch_hz=200 + 40 * clip)
        audio = visual = f"media/{name}.mp4"
        kind = "video"
    else:
        media_files.write_wav(folder / "media" / f"{name}.wav", seconds=0.5 + 0.3 * clip, pitch_hz=200 + 40 * clip)
        media_files.write_png(folder / "media" / f"{name}.png", seed=clip)
        audio, visual, kind = f"media/{name}.wav", f"media/{name}.png", "image"
    rows = []
    for aspect, options, question in (
        ("content", CONTENTS, "Which subject is this?"),
        ("emotion", EMOTIONS, "Which emotion does this artwork express?"),
    ):
        # Shifted by clip, so that the answer's position changes and neighbours differ in both answers.
        shown = [options[(i + clip) % 4] for i in range(4)]
        for modality in ("audio", "visual", "av"):
            rows.append(
                {
                    "id": f"{name}-{aspect}-{modality}",
                    "clip_id": name,
                    "modality": modality,
                    "aspect": aspect,
                    "question": question,
                    "options": shown,
                    "answer": options[clip % 4],
                    "audio": audio if modality != "visual" else None,
                    "image": visual if kind == "image" and modality != "audio" else None,
                    "video": visual if kind == "video" and modality != "audio" else None,
                    "valence": round(-0.8 + 0.2 * clip, 3),
                    "arousal": round(0.7 - 0.15 * clip, 3),
                    "emotion_distribution": None,
                    "art_form": "painting",
                    "license": "CC0-1.0",
                    "source": "test",
                }
            )
    return rows


def write_benchmark(folder: Path, clips: int = 6, nano: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder, [row for clip in range(clips) for row in items_of(clip, folder)])
    info = {"format": 1, "name": "test set", "nano": nano, "seed": 0}
    (folder / "benchmark.json").write_text(json.dumps(info))
    return folder


def read_items(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]


def write_items(folder: Path, rows: list[dict]) -> None:
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

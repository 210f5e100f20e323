"""A small file of general chat samples with real media, for tests."""

import json

from media_files import write_png, write_video


def write_general(folder):
    """Text alone, a picture, a film, and several turns with two pictures."""
    write_png(folder / "pictures" / "a.png", seed=1)
    write_png(folder / "b.png", seed=2)
    write_video(folder / "c.mp4", sound=False)
    image = {"type": "image", "path": "pictures/a.png"}
    rows = [
        {"id": "sum", "messages": [turn("user", "What is 2 + 2?"), turn("assistant", "It is 4.")]},
        {"messages": [turn("system", "Be brief."), turn("user", [text("And 3 + 3?")]), turn("assistant", "6")]},
        {"id": "picture", "messages": [turn("user", [image, text("What is it?")]), turn("assistant", "Waves.")]},
        {"id": "film", "messages": [
            turn("user", [{"type": "video", "video": "c.mp4"}, text("Does it grow bright?")]),
            turn("assistant", [text("Yes.")]),
        ]},
        {"id": "turns", "messages": [
            turn("user", [image, text("Which colour?")]), turn("assistant", "Green."),
            turn("user", [{"type": "image", "url": "b.png"}, text("And this?")]), turn("assistant", "Red."),
        ]},
    ]  # fmt: skip
    file = folder / "general.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def turn(role, content):
    return {"role": role, "content": content}


def text(words):
    return {"type": "text", "text": words}

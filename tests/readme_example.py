"""`make dist`: runs README.md's first Python example in a folder that has what it reads.

    python tests/readme_example.py FOLDER

The folder gets the demo's model and audio where `make demo` was run, else a tiny model with random weights and one
audio. The example runs in a process of its own that finds installed packages alone (`python -I`).
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import media_files  # noqa: E402
import tiny  # noqa: E402


def main(folder: Path) -> int:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[:1]
    model, media = Path("runs/demo/stage2"), Path("runs/demo/world/benchmark/media")
    for path in (model, media):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / model / "config.json").exists() and (ROOT / media).exists():
        (folder / model).symlink_to(ROOT / model)
        (folder / media).symlink_to(ROOT / media)
    else:
        tiny.make_vaemotionllm(folder / "tiny").rename(folder / model)
        media_files.write_wav(folder / media / "sound.wav")
    (folder / "example.py").write_text(example)
    return subprocess.run([sys.executable, "-I", "example.py"], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""The part of the report about models that says how to evaluate the same again."""

from collections.abc import Mapping, Sequence

from .leaderboard_words import NOT_RUN, NOT_STATED, WAY_WORDS, commands
from .report_blocks import Block, Cell, Commands, Heading, Table, Text

PINS_NOTE = (
    '"Not stated" is what the results file does not hold. The hash of the items is the SHA-256 of the benchmark\'s '
    "test.jsonl; a prompt hash is over each item's id with what was asked and its target."
)


def reproduction(entries: Mapping[str, dict]) -> list[Block]:
    labels = list(entries)
    pins = [entry["pins"] for entry in entries.values()]

    def row(name: str, values: Sequence[object]) -> list[Cell]:
        return [name, *(NOT_STATED if value in (None, "", {}) else str(value) for value in values)]

    adapter = [of["use_adapter"] for of in pins]
    packages = dict.fromkeys(package for of in pins for package in of["versions"])
    rows = [
        row("model", [of["model_args"] for of in pins]),
        row("model revision", [of["model_revision"] for of in pins]),
        row("adapter", [of["adapter"] for of in pins]),
        *(row(package, [of["versions"].get(package) for of in pins]) for package in packages),
        *([] if packages else [row("versions", [None for _ in pins])]),
        row("benchmark", [of["benchmark"]["name"] for of in pins]),
        row("benchmark version", [of["benchmark"]["version"] for of in pins]),
        row("hash of the items", [(of["benchmark"]["sha256"] or "")[:16] for of in pins]),
        row("build key", [of["benchmark"]["build_key"] for of in pins]),
        *(
            row(words, [of[name] for of in pins])
            for name, words in (
                ("attention", "attention backend"), ("dtype", "dtype"), ("device", "device"),
                *((name, words) for name, words in WAY_WORDS.items() if name != "use_adapter"),
                ("scoring", "scoring"), ("batch_size", "batch size"), ("date", "date"),
            )
        ),
        *([row("use_adapter", adapter)] if any(given is not None for given in adapter) else []),
        row("seeds", [", ".join(f"{k.removesuffix('_seed')} {v}" for k, v in of["seeds"].items()) for of in pins]),
    ]  # fmt: skip
    tasks = dict.fromkeys(task for of in pins for task in of["tasks"])
    asked = []
    for task in tasks:
        line: list[Cell] = [task]
        for of in pins:
            found = of["tasks"].get(task)
            if found is None:
                line.append(NOT_RUN)
                continue
            decoding = ", ".join(f"{name} {value!r}" for name, value in (found["generation"] or {}).items())
            line.append((found["prompt_sha256"][:16], f"{found['documents']} documents", decoding or NOT_STATED))
        asked.append(line)
    left = range(1, 1 + len(labels))
    other = dict.fromkeys(task for entry in entries.values() for task in entry["other"])
    return [
        Heading("To evaluate the same again"),
        Table(["", *labels], rows, left=left),
        Table(["task: prompts, documents, decoding", *labels], asked, left=left),
        Text(PINS_NOTE, "small"),
        *([Text(f"Tasks that this report does not know: {', '.join(other)}.", "note")] if other else []),
        Commands(commands(entries)),
    ]

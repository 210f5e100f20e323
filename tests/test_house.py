"""The house rules that a machine can check: imports that go one way, no circles, and the field's words.

`python tests/test_house.py plugin/train` prints what it finds in some folders or files.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "plugin"

# Bottom to top; rooms of one rank do not import each other. `model` is below `utils`: it is copied to the Hub alone.
RANKS = {
    "model": 0, "utils": 1, "config_file": 2, "data": 3, "benchmark": 4, "nano": 5, "train": 6, "evaluation": 6,
    "hub": 7, "demo": 8, "cli": 9,
}  # fmt: skip

# Words of no field, and what is said in their place: shared by names, messages and text for people.
FORBIDDEN = {
    r"films?": "video", r"sounds?": "audio", r"pictures?": "image", r"sight": "visual", r"seen": "visual, or reword",
    r"heard": "audio, or reword", r"readings?": "prediction, output", r"sure(ness)?": "confidence, calibration",
    r"ask(s|ed|ing)?": "prompt, query, request", r"facts?": "metadata", r"planes?": "valence-arousal space",
    r"findings?": "issue, warning", r"told": "reported", r"said": "reported", r"in words": "as text",
    r"child(ren)?": "subprocess, step", r"goes on|go on|going on": "resumes", r"anew": "again",
    r"in force": "selected",
    r"bolt(s|ed)?": "add an audio encoder", r"places": "local paths, positions",
}  # fmt: skip
WORDS = re.compile("|".join(rf"\b(?:{words})\b" for words in FORBIDDEN), re.IGNORECASE)
# What the benchmark and the nano world say to a model is fixed: another prompt is another number. And quotations.
ALLOWED_LINES = re.compile(r"soundfile|SoundFile|named_children|\.children\(|# words:")
ALLOWED_STRINGS = {"plugin/nano/language.py", "plugin/benchmark/prompts.py"}


def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> its tree."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(name: str, tree: ast.AST, known: set[str]) -> set[str]:
    """The package's own modules that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add(full if full in known else ".".join(base))
    return found & known


def room(name: str) -> str:
    return name.split(".")[0]


def test_imports_go_one_way():
    trees = modules()
    up = [
        f"{name} imports {target}"
        for name, tree in trees.items()
        for target in sorted(imports(name, tree, set(trees)))
        if name != "__init__" and room(target) != room(name) and RANKS[room(target)] >= RANKS[room(name)]
    ]
    assert not up


def test_no_circle_of_modules():
    trees = modules()
    graph = {name: imports(name, tree, set(trees)) for name, tree in trees.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def hidden_imports() -> list[str]:
    """The package's own modules, imported inside functions. Commands may: their help waits for no torch."""
    found = []
    for name, tree in modules().items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and room(name) != "cli":
                found += [
                    f"{name}, line {node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom) and node.level
                ]
    return found


def test_no_import_is_hidden_in_a_function():
    assert not hidden_imports()


def forbidden_in(file: Path) -> list[str]:
    """Forbidden words of a file: in Python its names, comments and strings, elsewhere its text."""
    where, text = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        parts = [(number, line) for number, line in enumerate(text.splitlines(), 1)]
    else:
        kinds = {tokenize.NAME, tokenize.COMMENT} | ({tokenize.STRING} if where not in ALLOWED_STRINGS else set())
        parts = [
            (token.start[0] + number, line.replace("_", " ") if token.type == tokenize.NAME else line)
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type in kinds or tokenize.tok_name[token.type] == "FSTRING_MIDDLE"
            for number, line in enumerate(token.string.splitlines())
        ]
    lines = text.splitlines()
    return [
        f"{where}:{number}: {match[0]!r} in: {lines[number - 1].strip()}"
        for number, part in parts
        if not ALLOWED_LINES.search(lines[number - 1])
        for match in WORDS.finditer(part)
    ]


def test_words_are_the_fields():
    files = [file for folder in (PACKAGE, ROOT / "patches", ROOT / "eval_tasks") for file in folder.rglob("*.py")]
    # Of the tests their helpers, without those whose names are used in many tests.
    others = {"media_files.py", "mutated_media.py"}
    files += [file for file in (ROOT / "tests/helpers").glob("*.py") if file.name not in others]
    files += [
        *(ROOT / "benchmarks").glob("*.*"),
        *PACKAGE.rglob("*.jinja"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    # docs/ablation.md is written by `make ablation`.
    files += [file for file in (ROOT / "docs").glob("*.md") if file.name != "ablation.md"]
    assert not [line for file in sorted(files) for line in forbidden_in(file)]


def test_module_docstrings_begin_with_a_noun_phrase():
    verbs = re.compile(r"(What|How|Whether|Where|Which|Reads?|Writes?|Makes?|Loads?|Checks?|Runs?|Builds?|From)\b")
    begins = {name: ast.get_docstring(tree) or "" for name, tree in modules().items()}
    assert not {name: text.splitlines()[0] for name, text in begins.items() if verbs.match(text)}


if __name__ == "__main__":
    chosen = [Path(word).resolve() for word in sys.argv[1:]] or [PACKAGE]
    files = [file for path in chosen for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    print("\n".join(line for file in files for line in forbidden_in(file)))

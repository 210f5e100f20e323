"""`make compat`: part of the test suite with the lowest and with the highest versions that setup.py allows.

Each environment, below `.compat/`, is a Python with what uv resolves from setup.py itself and with the wheel: of the
checkout it sees the tests alone. What is installed already stays, so an interrupted run goes on where it was. uv links
files out of its cache, so environments with the same torch share it on disk.

The tables at the end say what was installed and what failed. A lower end that no set of versions reaches fails too:
setup.py would promise what nobody can install.
"""

import argparse
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from xml.etree import ElementTree

import pandas
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".compat"
ENVIRONMENTS = [f"{end}-{python}" for end in ("lowest", "highest") for python in ("3.11", "3.12")]
SHOWN = (
    "torch", "torchvision", "torchaudio", "transformers", "lmms-eval", "deepspeed", "peft", "accelerate", "datasets",
    "huggingface-hub",
)  # fmt: skip
# What a user does, and the tests that do it.
CHECKS = {
    "import": ["tests/test_patches.py"],
    "forward": ["tests/model/test_model.py"],
    "generate": ["tests/model/test_conformity_generation.py"],
    "train": ["tests/train/test_train.py"],
    "LoRA": ["tests/train/test_lora.py"],
    "ZeRO-3": ["tests/train/test_zero3.py::test_two_ranks_follow_one_process"],
    "lmms-eval": ["tests/evaluation/test_lmms_eval.py"],
    "load": ["tests/model/test_ecosystem.py", "tests/hub/test_remote_code.py"],
    "Hub": ["tests/hub/test_push.py", "tests/hub/test_hub_loading.py"],
}


UV = Path(sys.executable).with_name("uv")


def uv(*words) -> str:
    return subprocess.run([UV, *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def install(name: str, wheel: Path) -> dict[str, Version]:
    """Makes `.compat/NAME` or brings it up to date; returns the versions in it by name of package."""
    end, python = name.split("-")
    home, lock = HOME / name, HOME / f"{name}.txt"
    resolution = {"lowest": "lowest-direct", "highest": "highest"}[end]
    interpreter = uv("python", "find", "--system", "--no-python-downloads", python)
    uv("pip", "compile", "-q", "--upgrade", "setup.py", "--extra", "test", "--resolution", resolution,
       "--python-version", python, "--no-header", "--no-annotate", "-o", lock)  # fmt: skip
    if not (home / "bin" / "python").exists():
        uv("venv", "-q", "--no-project", "--clear", "--python", interpreter, home)
    uv("pip", "sync", "--python", home, lock)
    uv("pip", "install", "-q", "--python", home, "--no-deps", wheel)
    pins = re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in pins}


def unreached(versions: dict[str, Version]) -> list[str]:
    """The lower ends of setup.py's ranges that are not among the versions."""
    out = []
    for requirement in map(Requirement, requires("vaemotionllm")):
        found = versions.get(canonicalize_name(requirement.name))
        for bound in requirement.specifier if not requirement.marker else ():
            # .public: without the "+cpu" of a torch for CPUs.
            if bound.operator == ">=" and Version(found.public) != Version(bound.version):
                out.append(f"{requirement.name}{bound} cannot be reached, the lowest is {found}")
    return out


def check(name: str, workers: int) -> dict[str, str]:
    """Runs the tests in `.compat/NAME`; returns what each check says, which ends in "passed" where it did."""
    report = HOME / f"{name}.xml"
    report.unlink(missing_ok=True)
    tests = [test for tests in CHECKS.values() for test in tests]
    subprocess.run(
        [HOME / name / "bin" / "pytest", "-n", str(workers), "--dist", "loadfile", f"--junitxml={report}", *tests],
        cwd=ROOT,
    )
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    out = {}
    for title, tests in CHECKS.items():
        modules = {test.partition(".py")[0].replace("/", ".") for test in tests}
        ran = [case for case in cases if case.get("classname") in modules and case.find("skipped") is None]
        bad = sum(case.find("failure") is not None or case.find("error") is not None for case in ran)
        out[title] = (f"{bad} of {len(ran)} FAILED" if bad else f"{len(ran)} passed") if ran else "did not run"
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all of them if none")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the tests of an environment")
    args = parser.parse_args()
    names = args.names or ENVIRONMENTS
    if unknown := set(names) - set(ENVIRONMENTS):
        parser.error(f"no environment {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    shutil.rmtree(HOME / "dist", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", HOME / "dist"], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = (HOME / "dist").glob("*.whl")
    installed, checked, failures = [("", *SHOWN)], [("", *CHECKS)], []
    for number, name in enumerate(names, start=1):
        print(f"== {name}, {number} of {len(names)}", flush=True)
        try:
            versions = install(name, wheel)
        except subprocess.CalledProcessError as error:
            installed.append((name, *["-" for _ in SHOWN]))
            checked.append((name, *["-" for _ in CHECKS]))
            failures.append(f"{name}: not installed, `uv {error.cmd[1]} {error.cmd[2]}` failed (see above)")
            continue
        installed.append((name, *(str(versions[package]) for package in SHOWN)))
        if name.startswith("lowest"):
            failures += [f"{name}: {line}" for line in unreached(versions)]
        results = check(name, args.workers)
        checked.append((name, *results.values()))
        failures += [f"{name}: {title} {said}" for title, said in results.items() if not said.endswith("passed")]
    tables = [pandas.DataFrame(rows).to_string(header=False, index=False) for rows in (installed, checked)]
    print("", tables[0], "", tables[1], "", *(failures or ["all passed"]), sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

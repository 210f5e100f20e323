"""The runner of steps: what is done is not repeated, what fails says so, nothing foreign is touched."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vaemotionllm import utils
from vaemotionllm.demo.steps import Step, StepFailed, last_lines, marker_of, run
from vaemotionllm.utils import InputError


def append(path: Path, word: str) -> str:
    return f"open({str(path)!r}, 'a').write({word!r} + chr(10))"


def python(program: str) -> str:
    return shlex.join(["python", "-c", program])


def step(out: Path, name: str, code: str = "", **kwargs) -> Step:
    """Writes its name into calls.txt beside the output folder and makes a file of its own."""
    made = out / f"{name}.txt"
    program = f"{append(out.parent / 'calls.txt', name)}; {code or 'pass'}; {append(made, name)}"
    return Step(name, f"make {name}", python(program), makes=(made.name,), owns=(made.name,), **kwargs)


def calls(out: Path) -> list[str]:
    path = out.parent / "calls.txt"
    return path.read_text().split() if path.exists() else []


def runner(out: Path, steps: list[Step], overwrite: bool = False, **arguments) -> str:
    """Runs the steps; returns the lines of progress."""
    lines: list[str] = []
    run(out, steps, {"arguments": {"seed": 0, **arguments}}, overwrite, lines.append)
    return "\n".join(lines)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "demo"


def test_steps_run_in_order_and_are_measured(out):
    lines = runner(out, [step(out, "a"), step(out, "b", "import time; time.sleep(0.5)")])
    assert calls(out) == ["a", "b"] and "[1/2] a: done in" in lines and "$ python -c" in lines
    marker = marker_of(out, "b")
    assert marker["done"] and marker["wall_s"] >= 0.5 and marker["command"].startswith("python -c ")


def test_memory_is_that_of_the_largest_process_of_a_step(out):
    """Measured by a process that is small itself: between fork and exec a subprocess is a copy of it."""
    code = "x = b'x' * 150_000_000"
    program = (
        "from pathlib import Path; from vaemotionllm.demo.steps import Step, run, marker_of; "
        f"out = Path({str(out)!r}); run(out, [Step('a', '', {python(code)!r})], {{'arguments': {{}}}}); "
        "print(marker_of(out, 'a')['peak_rss_mb'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 140 < float(done.stdout.split()[-1]) < 400


def test_an_interrupted_run_resumes_after_the_last_complete_step(out):
    flag = out.parent / "fixed"
    fails_once = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(7)"
    steps = [step(out, "a"), step(out, "b", fails_once), step(out, "c")]
    with pytest.raises(StepFailed) as failure:
        runner(out, steps)
    assert failure.value.code == 7 and failure.value.log == out / "logs" / "b.log"
    assert not marker_of(out, "b")["done"] and calls(out) == ["a", "b"]
    flag.touch()
    lines = runner(out, steps)
    assert "a: already done" in lines and calls(out) == ["a", "b", "b", "c"]
    assert (out / "a.txt").read_text() == "a\n"


def test_a_step_that_resumes_keeps_its_files_and_adds_up_its_time(out):
    counter = out / "count"
    count = f"len(open({str(counter)!r}).read())"
    code = f"{append(counter, 'x')}; import sys, time; time.sleep(0.3); {count} > 3 or sys.exit(1)"
    first = step(out, "a", code, resumes=True)
    first = Step(first.name, first.title, first.command, first.makes, (*first.owns, counter.name), resumes=True)
    with pytest.raises(StepFailed):
        runner(out, [first])
    runner(out, [first])
    assert counter.read_text() == "x\nx\n" and marker_of(out, "a")["wall_s"] >= 0.6


def test_a_step_that_does_not_resume_starts_from_nothing(out):
    rest = out / "half"
    code = f"import sys; {append(rest, 'x')}; sys.exit(3)"
    broken = step(out, "a", code)
    broken = Step(broken.name, broken.title, broken.command, broken.makes, (*broken.owns, rest.name))
    for _ in range(2):
        with pytest.raises(StepFailed):
            runner(out, [broken])
        assert rest.read_text() == "x\n"


def test_a_complete_run_and_one_of_other_arguments_are_replaced_only_by_overwrite(out):
    steps = [step(out, "a")]
    runner(out, steps)
    (out / "kept.txt").write_text("the user's own")
    before = (out / "run.json").read_text()
    assert "is finished" in runner(out, steps) and calls(out) == ["a"]
    for other in ({"seed": 1}, {"scale": "tiny"}):
        with pytest.raises(InputError, match=f"a run of other arguments; {next(iter(other))}"):
            runner(out, steps, **other)
    assert (out / "run.json").read_text() == before and (out / "a.txt").exists()
    assert "replacing the run in" in runner(out, steps, overwrite=True)
    assert calls(out) == ["a", "a"] and (out / "a.txt").read_text() == "a\n"
    failing = [step(out, "a"), step(out, "b", "import sys; sys.exit(1)")]
    for _ in range(2):  # the second time the interrupted run resumes
        with pytest.raises(StepFailed):
            runner(out, failing, overwrite=True)
    assert calls(out) == ["a", "a", "a", "b", "b"]
    with pytest.raises(InputError, match="a run of other arguments"):
        runner(out, failing, seed=1)
    with pytest.raises(StepFailed):
        runner(out, failing, overwrite=True, seed=1)
    assert calls(out)[-2:] == ["a", "b"] and (out / "kept.txt").read_text() == "the user's own"


def test_what_a_complete_run_has_lost_is_made_again(out):
    steps = [step(out, "a"), step(out, "b")]
    runner(out, steps)
    (out / "b.txt").unlink()
    assert "a: already done" in runner(out, steps) and calls(out) == ["a", "b", "b"]


def test_later_steps_run_again_where_an_earlier_result_is_gone(out):
    steps = [step(out, "a"), step(out, "b"), step(out, "c", "import sys; sys.exit(1)")]
    with pytest.raises(StepFailed):
        runner(out, steps)
    (out / "a.txt").unlink()
    with pytest.raises(StepFailed):
        runner(out, steps)
    assert calls(out) == ["a", "b", "c"] * 2 and (out / "b.txt").read_text() == "b\n"


def test_a_step_without_its_file_has_failed(out):
    silent = Step("a", "", python("print('all is well')"), makes=("report.json",))
    with pytest.raises(StepFailed, match="without writing .*report.json") as failure:
        runner(out, [silent])
    assert failure.value.code == 1 and (out / "logs" / "a.log").read_text() == "all is well\n"


def test_a_step_that_a_signal_ended_has_its_code(out):
    killed = Step("a", "", python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(StepFailed) as failure:
        runner(out, [killed])
    assert failure.value.code == 137


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda out: (out.mkdir(), (out / "thesis.txt").write_text("mine")), "did not write"),
        (lambda out: out.write_text("mine"), "is or holds a file"),
        (lambda out: (out.mkdir(), (out / "run.json").write_text("{")), "no valid JSON"),
        (lambda out: (out.mkdir(), (out / "run.json").write_text("{}")), "a run of other"),
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(out, make, words):
    make(out)
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    with pytest.raises(InputError, match=words):
        runner(out, [step(out, "a")])
    assert before == {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    assert calls(out) == []


def test_nothing_outside_the_folder_can_be_removed(out, tmp_path):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    for outside in (str(treasure), ".", "../treasure"):
        with pytest.raises(ValueError, match="is not inside"):
            runner(out, [Step("a", "", python(""), owns=(outside,))])
    assert treasure.is_dir()
    # A link is removed, what it points to is not.
    runner(out, [step(out, "a")], overwrite=True)
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(treasure)
    runner(out, [step(out, "a")], overwrite=True)
    assert treasure.is_dir() and not (out / "a.txt").is_symlink()


def test_two_runs_do_not_share_a_folder(out, monkeypatch):
    monkeypatch.setattr(utils, "WAIT_S", 0.1)
    with utils.owned(out, "--out"):
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on "):
            runner(out, [step(out, "a")])
    runner(out, [step(out, "a")])
    for name in utils.OWNER_FILES:  # of a run that was killed
        (out / name).touch()
    assert "is finished" in runner(out, [step(out, "a")])
    (out / "run.json").unlink()
    with pytest.raises(InputError, match="did not write"):
        runner(out, [step(out, "a")])


def test_last_lines_show_the_last_state_of_a_bar(tmp_path):
    (tmp_path / "log").write_bytes(b"start\n" + b"".join(b"\r%d/300" % i for i in range(301)) + b"\n\ndone\n")
    assert last_lines(tmp_path / "log") == ["start", "300/300", "done"]


def test_a_stray_descendant_does_not_hold_the_run(out):
    stray = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {stray!r}]).pid)"
    runner(out, [Step("a", "", python(code))])
    process = psutil.Process(int((out / "logs/a.log").read_text()))
    assert process.is_running(), "the run waited for it"
    process.kill()


INTERRUPTED = """
import shlex, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from vaemotionllm.demo.steps import Step, run
out = Path(sys.argv[1])
code = "import os, time; open(%r, 'w').write(str(os.getpid())); time.sleep(600)" % str(out.parent / "pid")
run(out, [Step("a", "", shlex.join(["python", "-c", code]))], {"arguments": {}})
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_subprocess_outlives_its_run(out, sent):
    if sent == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a subprocess that its parent was killed")
    demo = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(out)], stderr=subprocess.DEVNULL)
    pid_file = out.parent / "pid"
    deadline = time.monotonic() + 300
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process = psutil.Process(int(pid_file.read_text()))
    demo.send_signal(sent)
    demo.wait(timeout=120)
    _, alive = psutil.wait_procs([process], timeout=120)
    assert not alive
    assert not marker_of(out, "a")["done"]

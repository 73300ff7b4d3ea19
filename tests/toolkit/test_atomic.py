"""A folder appears whole or not at all, whatever happens in between."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.atomic import publish, write_whole
from toolkit.errors import StageError, UsageError

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_ours(folder: Path) -> bool:
    return (folder / "mark").exists()


def write(folder: Path, text: str) -> None:
    (folder / "mark").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_bytes(b"1" * 1000)


def test_the_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with publish(target) as work:
        write(work, "new")
        assert work.parent == target.parent
        assert not target.exists()
    assert (target / "mark").read_text() == "new"
    assert names(target.parent) == ["bundle"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with publish(tmp_path / "bundle"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), publish(tmp_path / "made" / "for" / "bundle") as work:
        write(work, "half")
        raise error
    assert names(tmp_path) == []


def test_parents_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ValueError, match="stop"), publish(tmp_path / "kept" / "made" / "bundle"):
        raise ValueError("stop")
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == []


@pytest.mark.parametrize("replace", [True, is_ours])
def test_a_previous_one_is_swapped_out_whole(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "bundle"
    with publish(target) as work:
        write(work, "old")
        (work / "only-in-old").touch()
    with publish(target, replace=replace) as work:
        write(work, "new")
        assert (target / "mark").read_text() == "old"
    assert names(target) == ["mark", "sub"]
    assert (target / "mark").read_text() == "new"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_previous_one_survives_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    with publish(target) as work:
        write(work, "old")
    with pytest.raises(error), publish(target, replace=True) as work:
        write(work, "new")
        raise error
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_the_previous_one_goes_back_when_the_second_rename_fails(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with publish(target) as work:
        write(work, "old")
    asked = []

    def pull_the_rug(folder: Path) -> bool:
        # Asked twice: at the start, and again right before the swap; then the new folder is taken away.
        asked.append(folder)
        if len(asked) == 2:
            held.rename(tmp_path / "stolen")
        return True

    with pytest.raises(FileNotFoundError), publish(target, replace=pull_the_rug) as work:
        held = work
        write(work, "new")
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["bundle", "stolen"]


@pytest.mark.parametrize("replace", [False, is_ours])
def test_what_is_not_ours_is_never_touched(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    (target / "cat.png").write_text("irreplaceable")
    with pytest.raises(UsageError, match="not to be replaced") as caught, publish(target, replace=replace):
        pytest.fail("must be refused before any work")
    assert "--output" in caught.value.hint
    assert names(tmp_path) == ["photos"]
    assert (target / "cat.png").read_text() == "irreplaceable"


def test_a_file_is_refused_even_with_replace(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="not a folder"), publish(tmp_path / "notes", replace=True):
        pytest.fail("must be refused before any work")
    assert (tmp_path / "notes").read_text() == "mine"


def test_what_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(UsageError, match="not to be replaced"), publish(target) as work:
        write(work, "new")
        target.mkdir()
        (target / "cat.png").touch()
    assert names(target) == ["cat.png"]
    assert names(tmp_path) == ["bundle"]


def test_an_empty_folder_may_go(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with publish(tmp_path / "bundle") as work:
        write(work, "new")
    assert (tmp_path / "bundle" / "mark").read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    with publish(tmp_path / "link") as work:
        write(work, "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "mark").read_text() == "new"


def test_a_parent_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write in"), publish(tmp_path / "file" / "bundle"):
        pytest.fail("must be refused before any work")


def test_the_root_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot write a bundle to /"), publish(Path("/")):
        pytest.fail("must be refused before any work")


def test_an_oserror_of_the_work_itself_passes_through(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="calibration"), publish(tmp_path / "bundle"):
        raise PermissionError(13, "calibration folder")


def test_the_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with publish(target) as work:
        write(work, "first")
        with pytest.raises(UsageError, match="another export is writing"), publish(target, replace=True):
            pytest.fail("must be refused before any work")
    assert (target / "mark").read_text() == "first"
    assert names(tmp_path) == ["bundle"]


def test_many_writers_in_a_row_of_threads_never_share_the_lock(tmp_path: Path) -> None:
    inside, most, refused, errors = [0], [0], [0], []

    def run() -> None:
        for _ in range(25):
            try:
                with publish(tmp_path / "bundle", replace=True) as work:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    write(work, "x")
                    inside[0] -= 1
            except UsageError:
                refused[0] += 1
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert most[0] == 1
    assert refused[0] < 100
    assert names(tmp_path) == ["bundle"]


def test_a_lock_file_that_its_holder_just_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fcntl.flock, []

    def lose_the_race(handle: int, how: int) -> None:
        # The holder before us unlinks the file between our open and our lock.
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".bundle.lock").unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", lose_the_race)
    first, second = publish(tmp_path / "bundle"), publish(tmp_path / "bundle")
    with first, pytest.raises(UsageError, match="another export"), second:
        pytest.fail("two writers at once")
    assert len(calls) == 3


def child(body: str, *arguments: str | Path, **options: int) -> subprocess.Popen[str]:
    code = f"import sys, os, signal, resource\nfrom pathlib import Path\nfrom toolkit.atomic import publish\n{body}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


HOLD = """
with publish(Path(sys.argv[1])) as work:
    (work / "mark").write_text("child")
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with child(HOLD, target) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(UsageError, match="another export is writing"), publish(target):
            pytest.fail("must be refused before any work")
        other.communicate("go on\n")
    assert other.returncode == 0
    assert (target / "mark").read_text() == "child"
    assert names(tmp_path) == ["bundle"]


def test_a_real_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    with child(HOLD, tmp_path / "made" / "bundle") as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.send_signal(signal.SIGINT)
        _, err = other.communicate()
    assert "KeyboardInterrupt" in err
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with child(HOLD, target) as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.kill()
    assert len(names(tmp_path)) == 2
    with publish(target) as work:
        write(work, "mine")
    assert names(tmp_path) == ["bundle"]


def test_hidden_folders_of_other_targets_are_left_alone(tmp_path: Path) -> None:
    others = [".bundle.v2.0123abcd.tmp", ".bundle.notes.tmp", ".bundled.0123abcd.tmp", ".bundle.0123abcd.tmpx"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.0123abcd.tmp").mkdir()
    with publish(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == sorted([*others, "bundle"])


def test_a_swap_cut_in_half_is_undone(tmp_path: Path) -> None:
    old = tmp_path / ".bundle.0123abcd.old"
    old.mkdir()
    (old / "mark").write_text("old")
    target = tmp_path / "bundle"
    with pytest.raises(ValueError, match="stop"), publish(target, replace=is_ours):
        raise ValueError("stop")
    assert (target / "mark").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_an_old_one_that_was_replaced_is_cleared(tmp_path: Path) -> None:
    for name, text in ((".bundle.0123abcd.old", "old"), ("bundle", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(text)
    with pytest.raises(ValueError, match="stop"), publish(tmp_path / "bundle", replace=is_ours):
        raise ValueError("stop")
    assert (tmp_path / "bundle" / "mark").read_text() == "new"
    assert names(tmp_path) == ["bundle"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 256 kB; mounting one takes root."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    target = small_disk / "bundle"
    with publish(target) as work:
        write(work, "old")
    with pytest.raises(UsageError, match="disk full") as caught, publish(target, replace=is_ours) as work:
        (work / "weights").write_bytes(bytes(1_000_000))
    assert "0.00 MB free" in caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)
    assert (target / "mark").read_text() == "old"
    assert names(small_disk) == ["bundle"]


def test_a_full_disk_behind_another_error(tmp_path: Path) -> None:
    for reason in (OSError(28, "No space left on device"), RuntimeError("I/O: No space left on device (28)")):
        with pytest.raises(UsageError, match="disk full"), publish(tmp_path / "bundle"):
            raise StageError("lower", "could not write") from reason
    assert names(tmp_path) == []


LIMITED = """
from toolkit.errors import UsageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with publish(Path(sys.argv[1])) as work:
        (work / "weights").write_bytes(bytes(10_000))
except UsageError as error:
    print(error)
"""


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with child(LIMITED, tmp_path / "bundle") as other:
        out, err = other.communicate()
    assert "disk full" in out, err
    assert names(tmp_path) == []


def test_nothing_is_renamed_before_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def record(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, (tmp_path / "bundle").exists()))
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("file names of handles need /proc")
    monkeypatch.setattr(os, "fsync", record)
    with publish(tmp_path / "bundle") as work:
        write(work, "new")
    before = [name for name, published in synced if not published]
    assert {"mark", "weights", "sub"} <= set(before)
    assert synced[-1] == (tmp_path.name, True)


def test_a_file_without_a_name_is_refused() -> None:
    # What an option is given where a CI job's variable is not set.
    with pytest.raises(UsageError, match="that is a folder"):
        write_whole(Path(), "text")

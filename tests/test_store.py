"""The store: whole entries or none, verified, built once, and collected."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import InputError, Interrupted, StageError
from edgeopt.store import Entry, Made, Store, default_root, key_of, source_digests

INPUTS = {"stage": "quantize", "choice": "int8", "options": {"a": 1}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def making(content: str = "content", **meta: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        (folder / "sub").mkdir()
        (folder / "model.onnx").write_text(content)
        (folder / "sub" / "weights.bin").write_bytes(bytes(1000))
        return Made({"told": 1, **meta})

    return make


def refuse(folder: Path) -> Made:
    raise AssertionError("built again")


def build(store: Store, inputs: dict[str, Any] = INPUTS, content: str = "content") -> Entry:
    return store.build(inputs, making(content))[0]


def left(store: Store, *folders: str) -> list[str]:
    return [path.name for folder in folders for path in (store.root / folder).iterdir()]


def test_what_is_built_is_found_with_its_files_and_meta(store: Store) -> None:
    assert store.find(INPUTS) is None
    entry, reused = store.build(INPUTS, making(answer=42))
    assert not reused
    found = store.find(INPUTS)
    assert found is not None
    assert (found.files / "model.onnx").read_text() == "content"
    assert found.meta == {"told": 1, "answer": 42}
    assert (found.key, found.inputs, found.size_bytes) == (entry.key, INPUTS, 1007)
    assert store.corrupt == ()


def test_what_is_there_is_not_built_again(store: Store) -> None:
    build(store)
    assert store.build(INPUTS, refuse)[1]
    assert Store(store.root).build(INPUTS, refuse)[1]


def test_keys_follow_from_values_and_not_from_their_order() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert len({key_of(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": None}, {})}) == 6


@pytest.mark.parametrize("error", [StageError("no"), KeyboardInterrupt(), RuntimeError("a bug"), OSError(5, "io")])
def test_a_failure_is_raised_and_leaves_nothing(store: Store, error: BaseException) -> None:
    def fail(folder: Path) -> Made:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        store.build(INPUTS, fail)
    assert store.find(INPUTS) is None
    assert left(store, "entries", "partial") == []
    assert build(store).meta == {"told": 1}


def test_a_full_disk_is_told_with_the_remedy(store: Store) -> None:
    def fill(folder: Path) -> Made:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="no space left") as caught:
        store.build(INPUTS, fill)
    assert "edgeopt cache gc" in str(caught.value.remedy)


def test_nothing_is_seen_of_an_entry_that_is_being_built(store: Store) -> None:
    def look(folder: Path) -> Made:
        assert Store(store.root).find(INPUTS) is None
        assert list(store.entries()) == []
        return making()(folder)

    store.build(INPUTS, look)
    assert store.find(INPUTS) is not None


def test_what_a_killed_run_left_is_no_entry(store: Store) -> None:
    half = store.root / "partial" / key_of(INPUTS) / "files"
    half.mkdir(parents=True)
    (half / "model.onnx").write_text("half")
    assert store.find(INPUTS) is None
    assert (build(store).files / "model.onnx").read_text() == "content"


def truncate(entry: Entry) -> None:
    os.truncate(entry.files / "sub" / "weights.bin", 999)


def flip(entry: Entry) -> None:
    path = entry.files / "sub" / "weights.bin"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def delete(entry: Entry) -> None:
    (entry.files / "model.onnx").unlink()


def edit_meta(entry: Entry) -> None:
    path = entry.folder / "entry.json"
    path.write_text(path.read_text().replace('"told": 1', '"told": 2'))


def write_record(text: str) -> Callable[[Entry], None]:
    return lambda entry: void((entry.folder / "entry.json").write_text(text))


def void(_: object) -> None:
    return None


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        delete,
        edit_meta,
        *map(write_record, ["", "{", "[]", "null", "{}", '{"schema": 1}', '{"schema": 99}']),
    ],
)
def test_a_damaged_entry_is_dropped_told_and_built_again(store: Store, damage: Callable[[Entry], None]) -> None:
    entry = build(store)
    damage(entry)
    assert store.find(INPUTS) is None
    assert not entry.folder.exists()
    assert store.corrupt == (entry.key,)
    again, reused = store.build(INPUTS, making())
    assert not reused
    assert again.meta == {"told": 1}
    assert store.find(INPUTS) is not None
    assert left(store, "partial") == []


def test_an_entry_without_its_record_is_none(store: Store) -> None:
    entry = build(store)
    (entry.folder / "entry.json").unlink()
    assert store.find(INPUTS) is None
    assert list(store.entries()) == []
    assert not store.build(INPUTS, making())[1]


def test_find_and_another_build_work_inside_a_build(store: Store) -> None:
    other = {**INPUTS, "choice": "other"}

    def nested(folder: Path) -> Made:
        assert store.find(INPUTS) is None
        assert store.find_recalled(other) is None
        build(store, other)
        return making()(folder)

    done = threading.Thread(target=store.build, args=(INPUTS, nested), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert store.find(other) is not None


BUILDER = """
import sys, time
from pathlib import Path
from edgeopt.store import Made, Store

root, built = map(Path, sys.argv[1:])

def make(folder):
    with open(built, "a") as file:
        file.write("built\\n")
    time.sleep(0.3)
    (folder / "model").write_text("made")
    return Made({})

print("ready", flush=True)
sys.stdin.readline()
entry, reused = Store(root).build({"step": 1}, make)
print(reused, (entry.files / "model").read_text())
"""


def started(code: str, *args: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_want_the_same_build_it_once(tmp_path: Path) -> None:
    built = tmp_path / "built"
    processes = [started(BUILDER, tmp_path / "cache", built) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = sorted(process.communicate(timeout=30)[0].strip() for process in processes)
    assert told == ["False made", "True made"]
    assert built.read_text() == "built\n"


def test_two_threads_that_want_the_same_build_it_once(store: Store) -> None:
    both, made = threading.Barrier(2, timeout=10), []

    def make(folder: Path) -> Made:
        made.append(1)
        return making()(folder)

    def want() -> None:
        both.wait()
        store.build(INPUTS, make)

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert made == [1]


def test_waiting_for_another_run_ends_when_this_one_is_stopped(store: Store) -> None:
    def meanwhile(folder: Path) -> Made:
        with pytest.raises(Interrupted):
            Store(store.root).build(INPUTS, refuse, stopping=lambda: True)
        return making()(folder)

    assert not store.build(INPUTS, meanwhile)[1]


def test_a_run_sweeps_up_what_dead_ones_left_and_nothing_of_the_living(store: Store) -> None:
    dead = store.root / "partial" / key_of({"dead": 1})
    dead.mkdir()
    log = store.root / "logs" / "1-old.log"
    log.write_text("")
    os.utime(log, (0, 0))

    def living(folder: Path) -> Made:
        with Store(store.root).in_use():
            assert folder.exists()
            assert not dead.exists()
            assert not log.exists()
        return making()(folder)

    store.build(INPUTS, living)
    assert store.find(INPUTS) is not None


def used(store: Store, name: str, at: int) -> Entry:
    entry = build(store, {"name": name})
    os.utime(entry.folder / "entry.json", (at, at))
    return entry


def test_collecting_keeps_what_was_used_most_recently(store: Store) -> None:
    old, new = used(store, "old", 100), used(store, "new", 200)
    newest = used(store, "newest", 300)
    removed, kept = store.collect(2 * newest.size_bytes)
    assert [entry.key for entry in removed] == [old.key]
    assert kept == 2 * newest.size_bytes
    assert {entry.key for entry in store.entries()} == {new.key, newest.key}


def test_finding_an_entry_is_using_it(store: Store) -> None:
    old, newer = used(store, "old", 100), used(store, "newer", 200)
    store.find({"name": "old"})
    removed, _ = store.collect(old.size_bytes)
    assert [entry.key for entry in removed] == [newer.key]


def test_a_dry_run_removes_nothing(store: Store) -> None:
    entry = build(store)
    removed, kept = store.collect(0, dry_run=True)
    assert ([e.key for e in removed], kept) == ([entry.key], 0)
    assert store.find(INPUTS) is not None


def test_collecting_everything_leaves_an_empty_store_that_works(store: Store) -> None:
    build(store)
    store.remember(INPUTS, {"sources": []})
    store.collect(0)
    assert left(store, "entries", "partial", "hints", "logs", "locks") == []
    assert not store.build(INPUTS, making())[1]


USER = """
import sys
from pathlib import Path
from edgeopt.store import Store

with Store(Path(sys.argv[1])).in_use():
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_nothing_is_collected_while_another_process_uses_the_store(store: Store) -> None:
    build(store)
    process = started(USER, store.root)
    with pytest.raises(InputError, match="another edgeopt is using the cache"):
        store.collect(0)
    assert store.find(INPUTS) is not None
    process.communicate("\n", timeout=30)
    assert len(store.collect(0)[0]) == 1


def test_several_processes_use_the_store_at_once(store: Store) -> None:
    process = started(USER, store.root)
    with store.in_use():
        build(store)
    process.communicate("\n", timeout=30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text("def build(): ...")
    return path


def remembering(store: Store, source: Path) -> tuple[Entry, bool]:
    """As the pipeline does: the sources are known once the user's code has run."""

    def make(folder: Path) -> Made:
        store.remember(INPUTS, {"sources": [str(source)]})
        return Made(making()(folder).meta, source_digests([str(source)]))

    return store.build(INPUTS, make)


def test_sources_that_are_remembered_are_part_of_the_key(store: Store, source: Path) -> None:
    entry, reused = remembering(store, source)
    assert not reused
    assert entry.inputs["sources"].keys() == {"0:model.py"}
    assert entry.key != key_of(INPUTS)
    assert remembering(store, source)[1]
    assert store.find_recalled(INPUTS) is not None


def test_an_edited_source_misses_and_the_old_text_hits_again(store: Store, source: Path) -> None:
    before = source.read_text()
    remembering(store, source)
    source.write_text("def build(): return 5")
    assert store.find_recalled(INPUTS) is None
    assert not remembering(store, source)[1]
    source.write_text(before)
    assert remembering(store, source)[1]
    assert len(list(store.entries())) == 2


def test_the_same_inputs_in_another_place_have_hints_of_their_own(store: Store, source: Path) -> None:
    store.remember(INPUTS, {"sources": [str(source)]}, place="/here")
    assert store.recall(INPUTS, "/here") == {"sources": [str(source)]}
    assert store.recall(INPUTS, "/there") is None
    assert store.recall(INPUTS) is None


def test_a_source_that_is_gone_misses(store: Store, source: Path) -> None:
    remembering(store, source)
    source.unlink()
    assert store.find_recalled(INPUTS) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "5"])
def test_a_damaged_hint_costs_a_build_and_no_more(store: Store, source: Path, text: str) -> None:
    remembering(store, source)
    (hint,) = (store.root / "hints").iterdir()
    hint.write_text(text)
    assert not remembering(store, source)[1]
    assert remembering(store, source)[1]


def test_the_nearest_entry_is_that_of_the_same_step_with_most_in_common(store: Store) -> None:
    near = {**INPUTS, "parent": "p", "samples": "other"}
    for inputs in ({**INPUTS, "parent": "q", "samples": "other"}, near, {**near, "stage": "compile", "samples": "s"}):
        build(store, inputs)
    found = store.nearest({**INPUTS, "parent": "p", "samples": "s"})
    assert found is not None
    assert found.inputs == near


def test_removing_is_by_inputs(store: Store) -> None:
    build(store)
    store.remove({"stage": "other"})
    assert store.find(INPUTS) is not None
    store.remove(INPUTS)
    assert store.find(INPUTS) is None


def test_records_are_json_with_the_digest_of_each_file(store: Store) -> None:
    record = json.loads((build(store).folder / "entry.json").read_text())
    assert [[name, size] for name, _, size in record["files"]] == [["model.onnx", 7], ["sub/weights.bin", 1000]]
    assert record["inputs"] == INPUTS


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the cache cannot be written") as caught:
        Store(tmp_path / "file")
    assert "EDGEOPT_CACHE" in str(caught.value.remedy)


def test_where_the_store_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEOPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edgeopt"
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"

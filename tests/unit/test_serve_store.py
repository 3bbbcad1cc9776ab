"""The store of the service: nothing is lost by a kill, ids rise, what is old goes, nobody else can read it."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serve.store import AnalysisRecord, Event, Store, StreamRecord
from unmask.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]

ANALYSIS = AnalysisRecord(id="an-1", state="queued", input="a.mp4", created_s=10.0, request={"path": "/x", "frames": 4})
STREAM = StreamRecord(id="st-1", url="rtsp://ann:secret@cam/1", created_s=5.0, settings={"name": "door"})


def event(owner: str, number: int, at_s: float = 100.0) -> Event:
    return Event(0, owner, "score", at_s, {"number": number})


def test_everything_is_there_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "state" / "unmask.sqlite"
    with Store(path) as store:
        store.put_analysis(ANALYSIS)
        store.put_stream(STREAM)
        first = store.append([event("st-1", 0), event("st-1", 1)])
    with Store(path) as store:
        assert store.analysis("an-1") == ANALYSIS
        assert store.analysis("an-2") is None
        assert store.streams() == [STREAM]
        assert store.events("st-1") == first
        assert store.append([event("an-1", 2)])[0].id > first[-1].id


def test_the_store_needs_no_memory_shared_with_others(tmp_path: Path) -> None:
    """So it may lie on a network's file system: https://www.sqlite.org/wal.html#noshm."""
    with Store(tmp_path / "unmask.sqlite") as store:
        store.put_stream(STREAM)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "unmask.sqlite", "unmask.sqlite-wal", "unmask.sqlite.lock",
        ]  # fmt: skip


def test_a_killed_process_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from serve.store import Event, Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(10_000):\n"
        "    store.append([Event(0, 'st', 'score', time.time(), {'number': i})])\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "unmask.sqlite"
    with subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 200:
                os.kill(writer.pid, signal.SIGKILL)
                break
        said = [int(line) for line in writer.stdout]
    last = said[-1] if said else 200
    with Store(path) as store:
        numbers = [e.data["number"] for e in store.events("st", limit=20_000)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= last + 1


def test_events_go_on_after_an_id(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        made = store.append([event("a", i) for i in range(5)] + [event("b", 9)])
        assert [e.data["number"] for e in store.events("a", after=made[2].id)] == [3, 4]
        assert [e.data["number"] for e in store.events("a", limit=2)] == [0, 1]
        assert [e.data["number"] for e in store.last_events("a", 2)] == [3, 4]


def test_ids_rise_even_after_the_newest_event_was_deleted(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.put_stream(STREAM)
        (old,) = store.append([event("st-1", 0)])
        assert store.delete("st-1")
        assert not store.delete("st-1")
        assert store.events("st-1") == []
        (new,) = store.append([event("st-1", 1)])
    assert new.id > old.id


def test_notes_are_written_with_events_and_go_with_their_owner(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        store.put_stream(STREAM)
        store.append([event("st-1", 0)], {"st-1": {"seq": 1}})
        store.put_note("models", {"default": "x"})
    with Store(tmp_path / "s") as store:
        assert (store.note("st-1"), store.note("models"), store.note("none")) == ({"seq": 1}, {"default": "x"}, None)
        store.delete("st-1")
        assert (store.note("st-1"), store.note("models")) == (None, {"default": "x"})


def test_a_key_belongs_to_its_first_owner(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        assert store.claim("key", "request", "an-1") == ("an-1", True)
        assert store.claim("key", "request", "an-2") == ("an-1", True)
        assert store.claim("key", "another", "an-3") == ("an-1", False)


def test_what_is_old_goes_and_what_runs_stays(tmp_path: Path) -> None:
    done = AnalysisRecord(
        id="an-2", state="done", input="b", created_s=1.0, finished_s=2.0, request={}, result={"a": 1}
    )
    with Store(tmp_path / "s", keep_events_s=50.0, keep_analyses_s=100.0, most_events=3) as store:
        store.put_analysis(ANALYSIS)
        store.put_analysis(done)
        store.append([event("a", 0, at_s=100.0), *(event("a", i, at_s=190.0) for i in range(1, 6))])
        store.append([event("b", 7, at_s=190.0)])
        assert store.prune(now_s=200.0) == 1 + 1 + 2
        assert [e.data["number"] for e in store.events("a")] == [3, 4, 5]
        assert [e.data["number"] for e in store.events("b")] == [7]
        assert [a.id for a in store.analyses()] == ["an-1"]


def test_analyses_are_listed_by_state_the_newest_first(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        for i, state in enumerate(["done", "queued", "done"]):
            store.put_analysis(AnalysisRecord(id=f"an-{i}", state=state, input="x", created_s=float(i), request={}))
        assert [a.id for a in store.analyses("done")] == ["an-2", "an-0"]
        assert [a.id for a in store.analyses(limit=1)] == ["an-2"]


def test_nobody_else_reads_the_passwords(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store(path) as store:
        store.put_stream(STREAM)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_store_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.store._HANDOVER_S", 0.2)
    with Store(tmp_path / "s"), pytest.raises(StorageError, match="runs already"):
        Store(tmp_path / "s")
    Store(tmp_path / "s").close()


@pytest.mark.parametrize("content", [b"no database at all, but quite long enough to look at", b""])
def test_a_file_of_another_kind_is_refused_and_an_empty_one_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    if content:
        with pytest.raises(StorageError, match="--state"):
            Store(path)
        assert path.read_bytes() == content
    else:
        Store(path).close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "s"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StorageError, match="another version"):
        Store(path)

"""What a person sees of a run: on a terminal, in a log, and at the end."""

import io

import pytest
from rich.console import Console

from pipelines.display import Display, print_summary
from pipelines.progress import Progress, Receipt, summary
from tests.unit.test_progress import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(clock: Clock) -> Progress:
    progress = Progress(videos=100_000, done_before=40_000, shards=1563, shards_before=625, clock=clock)
    for n in range(200):
        clock.now_s += 1.0
        progress.add(
            Receipt(frames=32, dropped={"decode_failed": n % 2}, faces=40, seconds={"decode": 0.5, "embed": 1.5})
        )
        progress.video_done(*(("failed", "not_a_video") if n % 50 == 7 else ("done", None)))
    progress.shard_done()
    return progress


def log(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, height=40, color_system=None
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_one_whole_line_each_ten_seconds_and_at_the_end(clock: Clock) -> None:
    progress, console = run(clock), log(width=40)
    with Display(progress, console=console, clock=clock) as display:
        for _ in range(100):
            clock.now_s += 0.25
            display.tick()
    lines = written(console).splitlines()
    assert len(lines) == 4  # at 0, 10 and 20 s, and at the end
    assert lines[0] == (
        "[3 min 20 s] 40,200 of 100,000 videos (40.2%); 60.5 a minute, 16 h 27 min left; "
        "done 196, failed 4; 626 of 1,563 shards whole; reasons: not_a_video 4; "
        "frames: decoded 6,300, decode_failed 100; 8,000 faces; decode 32.5/s, embed 40.6/s"
    )
    assert lines[-1].startswith("[3 min 45 s]")


def test_a_log_of_a_run_that_has_just_begun(clock: Clock) -> None:
    console = log()
    with Display(Progress(videos=3, clock=clock), console=console, clock=clock):
        pass
    assert written(console).splitlines()[0] == "[0 s] 0 of 3 videos (0.0%); time left not known yet; none finished"


def test_the_last_line_of_a_log_stands_even_where_the_run_failed(clock: Clock) -> None:
    console = log()
    display = Display(Progress(videos=3, clock=clock), console=console, clock=clock)
    with pytest.raises(KeyboardInterrupt), display:
        raise KeyboardInterrupt
    assert len(written(console).splitlines()) == 2


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_gets_a_table_that_is_redrawn_a_few_times_a_second(clock: Clock, width: int) -> None:
    progress, console = run(clock), terminal(width)
    with Display(progress, console=console, clock=clock) as display:
        for _ in range(32):
            clock.now_s += 1 / 32
            display.tick()
        drawn = written(console)
    assert drawn.count("40,200 of 100,000") == 5
    for said in ("16 h", "decode", "6,400 frames", "32.5", "embed", "8,000 faces", "1.5", "not_a_video 4", "done 196"):
        assert said in drawn
    assert max(len(line) for line in drawn.replace("\r", "\n").split("\n") if "\x1b" not in line) <= width


def test_reasons_without_number_do_not_flood_the_screen(clock: Clock) -> None:
    progress, console = Progress(videos=100, clock=clock), log()
    for n in range(30):
        progress.video_done("failed", f"reason_{n}")
    with Display(progress, console=console, clock=clock):
        pass
    assert "reason_7 1, others 22" in written(console)
    assert "reason_9" not in written(console)


def test_summary_as_a_table(clock: Clock) -> None:
    console = log(width=100)
    print_summary(summary(run(clock)), console)
    text = written(console)
    rows = [
        tuple(part.strip() for part in line.split("  ", 1)) for line in text.splitlines() if not line.startswith("  ")
    ]
    found = dict(row for row in rows if len(row) == 2)
    assert found["videos"] == "40,200 of 100,000, 40,000 of them by earlier runs"
    assert found["frames"] == "6,300 decoded of 6,400 asked for"
    assert found["faces"] == "8,000"
    assert found["embed"] == "300.0 s of work on 8,000 faces, 26.7 a second"
    assert found["time"] == "3 min 20 s, 60.0 videos a minute"
    assert "failed" in text
    assert "4  (not_a_video 4)" in text


def test_summary_of_a_run_that_had_nothing_to_do(clock: Clock) -> None:
    console = log()
    print_summary(summary(Progress(videos=5, done_before=5, clock=clock)), console)
    assert "5 of 5, 5 of them by earlier runs" in written(console)

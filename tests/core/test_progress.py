"""What the progress bar prints, on a terminal and in a log."""

import io

from mmjax.core.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def run(stream, *, initial, steps, **kwargs):
    """Two steps a second from `initial`, after a minute of compilation."""
    clock = Clock()
    bar = Progress(1000, batch_size=32, stream=stream, clock=clock, **kwargs)
    bar.say("before")
    bar.start(initial)
    clock.now += 60
    for step in range(initial + 1, initial + steps + 1):
        bar.update(step)
        clock.now += 0.5
    clock.now -= 0.5
    return bar


def test_a_log_gets_a_line_now_and_then():
    stream = io.StringIO()
    bar = run(stream, initial=400, steps=101, every_seconds=20)
    bar.update(480, loss=0.25)
    bar.close()
    bar.close()
    # Two steps a second from step 401 on: neither the 400 steps before nor the minute of compilation count.
    assert stream.getvalue().splitlines() == [
        "before",
        "step 401/1000",
        "step 441/1000, 64 examples/s, 04:39 left",
        "step 481/1000, 64 examples/s, 04:19 left",
        "step 501/1000, loss 0.25, 64 examples/s, 04:09 left",
    ]


def test_the_bar_starts_where_the_run_does():
    stream = Terminal()
    bar = run(stream, initial=400, steps=100)
    bar.update(500, loss=0.125)
    bar.close()
    drawn = stream.getvalue().split("\r")
    assert " 40%" in drawn[1] and "step 400/1000" in drawn[1]
    assert "step 500/1000, loss 0.125, 64 examples/s, 04:10 left" in drawn[-1]


def test_notices_stand_on_lines_of_their_own():
    stream = Terminal()
    bar = run(stream, initial=0, steps=3)
    bar.say("saved step 3")
    bar.close()
    lines = stream.getvalue().split("\n")
    notice = next(line for line in lines if "saved step 3" in line)
    *cleared, shown = notice.split("\r")
    assert shown == "saved step 3" and cleared[-1].strip() == ""  # the bar was wiped first
    assert "step 3/1000" in stream.getvalue().rsplit("saved step 3", 1)[1]  # and drawn again below


def test_disabled_shows_notices_only():
    for stream in (io.StringIO(), Terminal()):
        bar = run(stream, initial=0, steps=200, enabled=False, every_seconds=0)
        bar.close()
        assert stream.getvalue() == "before\n"


def test_a_late_loss_does_not_move_the_step_back():
    stream = io.StringIO()
    bar = run(stream, initial=0, steps=5, every_seconds=1e9)
    bar.update(2, loss=1.5)
    bar.close()
    assert stream.getvalue().splitlines()[-1].startswith("step 5/1000, loss 1.5")

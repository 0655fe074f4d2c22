"""shared/log.py: every line is whole, bounded and readable; a reader that stands still costs lines, never time."""

import json
import logging
import os
from collections.abc import Iterator
from typing import Literal

import pytest

from shared import log
from shared.defaults import LOG_LINE_MAX_BYTES
from tests.support import Clock


class Pipe:
    """A pipe to log into."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)

    def text(self) -> str:
        found = b""
        try:
            while part := os.read(self.read_fd, 65_536):
                found += part
        except BlockingIOError:
            pass
        return found.decode()

    def rows(self) -> list[dict[str, object]]:
        return [json.loads(row) for row in self.text().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    made = Pipe()
    yield made
    log.configure("info", "json")
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    os.close(made.read_fd)
    os.close(made.write_fd)


def test_a_json_line_has_the_fixed_fields_and_the_extras(pipe: Pipe) -> None:
    """ts level component message, then what the caller gave, then one newline."""
    log.configure("info", "json", fd=pipe.write_fd, fields={"worker": 3})
    log.line("proxy.protocol", log.WARNING, "refused", correlation_id="ab-1", status=400)
    (row,) = pipe.rows()
    assert list(row) == ["ts", "level", "component", "message", "worker", "correlation_id", "status"]
    assert str(row["ts"]).endswith("Z")
    assert (row["level"], row["component"], row["message"]) == ("warning", "proxy.protocol", "refused")
    assert (row["worker"], row["correlation_id"], row["status"]) == (3, "ab-1", 400)


def test_the_standard_library_writes_the_same_lines(pipe: Pipe) -> None:
    """The logger's name is the component, `extra` are fields, an exception is a field."""
    log.configure("info", "json", fd=pipe.write_fd)
    logger = logging.getLogger("agentd.lane")
    logger.debug("not at this level")
    logger.info("agent %s up", "waf", extra={"peer": "uid 1"})
    try:
        raise ValueError("no such thing")
    except ValueError:
        logger.exception("failed")
    first, second = pipe.rows()
    assert (first["component"], first["message"], first["peer"]) == ("agentd.lane", "agent waf up", "uid 1")
    assert second["level"] == "error"
    assert str(second["exception"]).endswith("ValueError: no such thing")


def test_a_level_that_is_off_writes_nothing(pipe: Pipe) -> None:
    """`line` and `is_on` follow the configured level."""
    log.configure("warning", "json", fd=pipe.write_fd)
    log.line("a", log.INFO, "quiet")
    assert not log.is_on(log.INFO)
    assert log.is_on(log.ERROR)
    assert pipe.text() == ""


def test_text_lines_cannot_be_forged_by_their_values(pipe: Pipe) -> None:
    """Newlines, quotes and terminal escapes of a client stay inside their quotes, escaped."""
    log.configure("info", "text", fd=pipe.write_fd)
    log.line("a", log.INFO, "two\nlines", peer='x" level=fake', uri="/\x1b[31m\x9b", plain="ok", n=1, ops=["a", "b"])
    text = pipe.text()
    assert text.count("\n") == 1
    assert text.split(" ", 1)[1] == (
        'info a two\\nlines peer="x\\" level=fake" uri="/\\x1b[31m\\x9b" plain=ok n=1 ops=["a","b"]\n'
    )


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("value", ["x" * 100_000, "\x01" * 100_000, "\ud800", 2**70, {"a": 2**70}, b"\xff", object()])
def test_no_value_breaks_a_line_or_makes_it_longer_than_a_pipe_takes_whole(
    pipe: Pipe, style: Literal["json", "text"], value: object
) -> None:
    """Whatever is logged, one line of at most PIPE_BUF bytes comes out."""
    log.configure("info", style, fd=pipe.write_fd)
    log.line("a", log.ERROR, "m", one=value, two=value, exception="begin" + "y" * 9000 + "end")
    text = pipe.text()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert len(text.encode()) <= LOG_LINE_MAX_BYTES
    assert "begin" not in text
    assert "yend" in text
    if style == "json":
        assert json.loads(text)["truncated"] is True


def test_more_fields_than_a_line_holds_are_cut(pipe: Pipe) -> None:
    """Many fields are as bounded as long ones."""
    log.configure("info", "json", fd=pipe.write_fd)
    log.line("a", log.ERROR, "m", **{f"field_{n}": "v" * 50 for n in range(1000)})
    (row,) = pipe.rows()
    assert row["truncated"] is True


def test_a_caller_cannot_overwrite_the_fixed_fields(pipe: Pipe) -> None:
    """A field with a fixed name gets another one."""
    log.configure("info", "json", fd=pipe.write_fd)
    log.line("a", log.INFO, "m", level="fake", ts="never")
    (row,) = pipe.rows()
    assert (row["level"], row["level_"], row["ts_"]) == ("info", "fake", "never")


def test_unusable_arguments_of_a_message_are_told_not_raised(pipe: Pipe) -> None:
    """A wrong format string in a rarely run branch must not end a request."""
    log.configure("info", "json", fd=pipe.write_fd)
    logging.getLogger("a").warning("%d items", "many")
    (row,) = pipe.rows()
    assert "unusable arguments" in str(row["message"])


def test_a_reader_that_stands_still_costs_lines_and_never_blocks(pipe: Pipe) -> None:
    """A full pipe drops and counts; the first line that fits again is preceded by the count."""
    log.configure("info", "json", fd=pipe.write_fd)
    before = log.dropped()
    for n in range(2000):
        log.line("a", log.INFO, "x" * 300, n=n)
    lost = log.dropped() - before
    assert lost > 1000
    assert len(pipe.rows()) == 2000 - lost
    log.line("a", log.INFO, "again")
    told, again = pipe.rows()
    assert told["count"] == log.dropped()
    assert again["message"] == "again"


def test_a_closed_reader_is_no_error(pipe: Pipe) -> None:
    """EPIPE is counted like any other lost line."""
    log.configure("info", "json", fd=pipe.write_fd)
    os.close(pipe.read_fd)
    before = log.dropped()
    log.line("a", log.INFO, "nobody")
    assert log.dropped() == before + 1
    pipe.read_fd = os.open("/dev/null", os.O_RDONLY)


def test_a_flood_becomes_one_line_a_second_with_the_count(pipe: Pipe, clock: Clock) -> None:
    """Semantics 16: so many lines in a second, beyond that the count, told when the second is over."""
    log.configure("info", "json", fd=pipe.write_fd)
    limited = log.RateLimited("proxy.refusals", lines_per_s=3, clock=clock)
    for _ in range(10):
        limited.line(log.WARNING, "refused")
    assert len(pipe.rows()) == 3
    limited.tick(clock.ms(10))
    assert pipe.rows() == [], "the second is not over"
    limited.tick(clock.s(1))
    (row,) = pipe.rows()
    assert (row["message"], row["count"], row["component"]) == ("log lines suppressed", 7, "proxy.refusals")
    assert limited.suppressed == 7
    clock.s(1)
    limited.line(log.WARNING, "refused")
    assert [row["message"] for row in pipe.rows()] == ["refused"]


def test_a_flood_that_goes_on_tells_its_count_without_a_tick(pipe: Pipe, clock: Clock) -> None:
    """The next second's first line brings the last second's count."""
    log.configure("info", "json", fd=pipe.write_fd)
    limited = log.RateLimited("a", lines_per_s=1, clock=clock)
    limited.line(log.WARNING, "one")
    limited.line(log.WARNING, "two")
    clock.s(1)
    limited.line(log.WARNING, "three")
    assert [row["message"] for row in pipe.rows()] == ["one", "log lines suppressed", "three"]


def test_libraries_that_chat_are_kept_quiet(pipe: Pipe) -> None:
    """uvicorn's "Started server process" is nothing that an operator of ours should see."""
    log.configure("info", "json", fd=pipe.write_fd)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [row["level"] for row in pipe.rows()] == ["warning"]

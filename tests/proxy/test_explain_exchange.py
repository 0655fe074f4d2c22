"""The driver's own head, without a connection: what agents that see bodies make of it."""

import pytest

from proxy.explain_exchange import LENGTH_LATER, MADE_ANEW, Rehearsal, rehearse
from proxy.explain_head import read
from shared.config.schema import Agent, Config, Server, Target, Upstream
from shared.config.schema_routes import Filter, Route
from shared.errors import RequestRefused
from shared.plan import compile_plans


def sent(*fields: str, first: str = "POST /x HTTP/1.1", events: tuple[str, ...] = (), **values: object) -> Rehearsal:
    """With one agent that decides on `events`."""
    filters = (Filter("a"),) if events else ()
    route = Route("r", "up", filters=filters, **values)  # type: ignore[arg-type]
    agent = Agent("a", "zmq-v2", events=events)  # type: ignore[arg-type]
    config = Config(upstreams=(Upstream("up", (Target("up:1"),)),), agents=(agent,), routes=(route,))
    data = "\r\n".join([first, "Host: h", *fields, "", ""]).encode()
    head = read(data, Server()).head
    assert head is not None
    return rehearse(head, "192.0.2.1", False, route, compile_plans(config), "up:1", Server())


def lines(found: Rehearsal) -> list[str]:
    return found.raw.decode().lower().split("\r\n")


def test_without_agents_it_goes_as_it_came() -> None:
    found = sent("Content-Length: 5", "Range: bytes=0-1", "Accept-Encoding: br")
    assert lines(found)[:5] == [
        "post /x http/1.1",
        "host: h",
        "content-length: 5",
        "range: bytes=0-1",
        "accept-encoding: br",
    ]
    assert f"x-correlation-id: {MADE_ANEW.decode()}" in lines(found)
    assert (found.is_whole, found.is_decoded) == (False, False)
    assert found.raw.endswith(b"\r\n\r\n")


def test_a_buffered_body_has_its_length_and_a_streamed_one_chunks() -> None:
    body = ("request_body_chunk",)
    found = sent("Content-Length: 5", events=body)
    assert "content-length: 5" in lines(found)
    assert found.is_whole
    found = sent("Transfer-Encoding: chunked", events=body)
    assert f"content-length: {LENGTH_LATER.decode()}" in lines(found)
    found = sent("Content-Length: 5", events=body, request_body="stream")
    assert "transfer-encoding: chunked" in lines(found)
    assert "content-length: 5" not in lines(found)
    assert not found.is_whole


def test_agents_that_decide_on_responses_see_all_of_them() -> None:
    found = sent("Range: bytes=0-1", first="GET /x HTTP/1.1", events=("response_body_chunk",))
    assert "range: bytes=0-1" not in lines(found)


def test_a_coding_that_nobody_knows() -> None:
    fields = ("Content-Length: 5", "Content-Encoding: compress")
    assert "content-encoding: compress" in lines(sent(*fields, events=("request_body_chunk",)))
    with pytest.raises(RequestRefused) as refused:
        sent(*fields, events=("request_body_chunk",), decode_bodies=True)
    assert refused.value.status == 415


def test_a_coded_body_is_decoded() -> None:
    fields = ("Content-Length: 5", "Content-Encoding: gzip")
    assert sent(*fields, events=("request_body_chunk",), decode_bodies=True).is_decoded
    assert not sent(*fields, events=("request_body_chunk",)).is_decoded

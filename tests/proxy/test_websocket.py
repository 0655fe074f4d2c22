"""The relay of WebSocket messages: bytes in, commands out; clients and upstreams are the library's own objects."""

import os
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, Close, Frame, Opcode
from websockets.protocol import CLIENT, SERVER
from websockets.protocol import Protocol as Frames

from proxy.upgrade import Deflate
from proxy.websocket import Message, Relay, Way
from proxy.websocket_peer import Peer, close_payload
from shared.decision import ALLOW, ChunkAction, ChunkVerdict, Decision, Verb
from shared.defaults import WEBSOCKET_FRAMES_PER_TURN, WEBSOCKET_HELD_BYTES
from tests.support import Clock

DROP = Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0))
GONE = (1001, b"the other side is gone")


def replace(body: bytes) -> Decision:
    return Decision(chunk=ChunkVerdict(ChunkAction.REPLACE, 0), body=body)


def close(code: int, reason: bytes = b"") -> Decision:
    return Decision(Verb.BLOCK, code, body=reason, agent="a", reason="close")


class End(Frames):
    """A real end: the client or the upstream, with what it has received."""

    def __init__(self, side: Any, deflate: PerMessageDeflate | None) -> None:
        super().__init__(side, max_size=None)
        if deflate is not None:
            self.extensions = [deflate]
        self.got: list[Any] = []
        self.parts = b""

    def take(self, data: bytes) -> None:
        self.receive_data(data)
        for frame in self.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is CLOSE:
                told = Close.parse(frame.data)
                self.got.append(("close", int(told.code), told.reason.encode()))
            else:
                self.got.append((frame.opcode.name.lower(), bytes(frame.data)))
        assert self.parser_exc is None, self.parser_exc
        self.data_to_send()

    def frame(self, opcode: Opcode, data: bytes = b"", fin: bool = True) -> bytes:
        self.send_frame(Frame(opcode, data, fin))
        return b"".join(self.data_to_send())


class World:
    """A relay with its link: two real ends, agents that answer from a list (None = later)."""

    def __init__(
        self,
        *answers: Decision | None,
        stages: int = 1,
        limit: int = 1 << 20,
        deflate: Deflate | None = None,
        takes: int = 1 << 30,
    ) -> None:
        self.answers = list(answers)
        coding: list[PerMessageDeflate | None] = [None, None]
        if deflate is not None:
            server, client = deflate.server_no_context_takeover, deflate.client_no_context_takeover
            bits = (deflate.server_max_window_bits, deflate.client_max_window_bits)
            coding = [
                PerMessageDeflate(server, client, bits[0], max(bits[1], 9)),
                PerMessageDeflate(client, server, bits[1], max(bits[0], 9)),
            ]
        self.client = End(CLIENT, coding[0])
        self.upstream = End(SERVER, coding[1])
        self.asked: list[tuple[bool, int, str, bytes, int]] = []
        self.done: list[Any] = []
        self.held: set[bool] = set()
        self.shut_peers: list[bool] = []
        self.open_mode = False
        self.takes = takes
        self.relay = Relay(self, stages, limit, deflate)

    def send(self, to: Peer, data: bytes) -> None:
        assert to.is_client not in self.shut_peers
        if not to.is_lost:
            (self.client if to.is_client else self.upstream).take(data)
        if len(data) > self.takes:
            self.relay.full(to)

    def hold(self, peer: Peer) -> None:
        self.held.add(peer.is_client)

    def release(self, peer: Peer) -> None:
        self.held.remove(peer.is_client)

    def ask(self, way: Way, message: Message, stage: int) -> Decision | None:
        self.asked.append((way.is_from_client, stage, message.opcode, message.payload, message.index))
        return self.answers.pop(0) if self.answers else ALLOW

    def cancel(self, way: Way) -> None:
        self.done.append(("cancel", way.is_from_client))

    def malformed(self, decision: Decision, stage: int) -> Decision | None:
        self.done.append("malformed")
        return None if self.open_mode else Decision(Verb.FAIL, 503, agent="a", reason="malformed")

    def again(self, way: Way) -> None:
        self.done.append(("again", way.is_from_client))

    def closing(self) -> None:
        self.done.append("closing")

    def shut(self, peer: Peer) -> None:
        self.shut_peers.append(peer.is_client)

    def ended(self, code: int, decision: Decision | None, reason: str) -> None:
        self.done.append(("ended", code, reason))

    def up(self, *frames: bytes) -> None:
        """From the client."""
        self.relay.from_client.take(b"".join(frames))

    def down(self, *frames: bytes) -> None:
        """From the upstream."""
        self.relay.from_upstream.take(b"".join(frames))

    def say(self, text: bytes) -> bytes:
        """A text message of the client's."""
        return self.client.frame(TEXT, text)


class TestMessages:
    def test_pass_both_ways_and_keep_their_kind(self) -> None:
        world = World()
        world.up(world.say("grüße".encode()), world.client.frame(BINARY, b"\xff\x00"))
        world.down(world.upstream.frame(TEXT, b"back"))
        assert world.upstream.got == [("text", "grüße".encode()), ("binary", b"\xff\x00")]
        assert world.client.got == [("text", b"back")]
        assert world.asked == [
            (True, 0, "text", "grüße".encode(), 0), (True, 0, "binary", b"\xff\x00", 1), (False, 0, "text", b"back", 0),
        ]  # fmt: skip

    def test_fragments_are_shown_and_passed_as_one_message(self) -> None:
        """Also cut within a character, with a ping between them."""
        world = World()
        world.up(world.client.frame(TEXT, b"gr\xc3", False), world.client.frame(PING, b"p"))
        assert world.client.got == [("pong", b"p")]
        world.up(world.client.frame(CONT, b"\xbc", False), world.client.frame(CONT, b"n"))
        assert world.upstream.got == [("text", "grün".encode())]
        assert [asked[2:4] for asked in world.asked] == [("text", "grün".encode())]

    def test_byte_by_byte(self) -> None:
        world = World()
        for byte in world.client.frame(BINARY, bytes(300)) + world.say(b"x"):
            world.up(bytes([byte]))
        assert world.upstream.got == [("binary", bytes(300)), ("text", b"x")]

    def test_order_holds_while_one_is_in_question_and_the_other_direction_goes_on(self) -> None:
        world = World(None, ALLOW, ALLOW)
        world.up(world.say(b"1"), world.say(b"2"))
        world.down(world.upstream.frame(TEXT, b"d"))
        assert world.upstream.got == []
        assert world.client.got == [("text", b"d")]
        world.relay.from_client.decided(ALLOW)
        assert world.upstream.got == [("text", b"1"), ("text", b"2")]

    def test_drop_and_replace(self) -> None:
        world = World(DROP, replace(b"new"), replace(b""), replace(b"\xff"))
        world.up(world.say(b"1"), world.say(b"2"), world.say(b"3"), world.client.frame(BINARY, b"4"))
        assert world.upstream.got == [("text", b"new"), ("text", b""), ("binary", b"\xff")]

    def test_stages_see_what_the_one_before_made(self) -> None:
        world = World(replace(b"two"), None, stages=3)
        world.up(world.say(b"one"))
        world.relay.from_client.decided(replace(b"three"))
        assert [asked[1:4] for asked in world.asked] == [
            (0, "text", b"one"),
            (1, "text", b"two"),
            (2, "text", b"three"),
        ]
        assert world.upstream.got == [("text", b"three")]

    def test_a_drop_ends_the_stages(self) -> None:
        world = World(DROP, stages=2)
        world.up(world.say(b"one"))
        assert len(world.asked) == 1
        assert world.upstream.got == []

    def test_without_a_stage_messages_pass(self) -> None:
        world = World(stages=0)
        world.up(world.say(b"x"))
        assert world.upstream.got == [("text", b"x")]

    def test_text_replaced_by_what_is_no_text_fails_the_agent(self) -> None:
        world = World(replace(b"\xff"))
        world.up(world.say(b"x"))
        assert world.client.got == world.upstream.got == [("close", 1011, b"")]
        assert world.done == ["malformed", ("ended", 1011, "malformed")]

    def test_and_does_not_count_where_it_is_fail_open(self) -> None:
        world = World(replace(b"\xff"))
        world.open_mode = True
        world.up(world.say(b"x"))
        assert world.upstream.got == [("text", b"x")]

    def test_pongs_nobody_asked_for_are_not_shown(self) -> None:
        world = World()
        world.up(world.client.frame(PONG, b"x"))
        world.down(world.upstream.frame(PING, b"y"))
        assert world.asked == []
        assert world.upstream.got == [("pong", b"y")]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=8), st.integers(1, 60))
    def test_whatever_the_reads_are(self, said: list[tuple[bool, bytes]], size: int) -> None:
        """Messages, whole or in fragments, arrive as they were said however the stream is cut."""
        world = World(deflate=Deflate())
        raw = b""
        for is_cut, payload in said:
            if is_cut:
                raw += world.client.frame(BINARY, payload[:3], False) + world.client.frame(CONT, payload[3:])
            else:
                raw += world.client.frame(BINARY, payload)
        for at in range(0, len(raw), size):
            world.up(raw[at : at + size])
        assert world.upstream.got == [("binary", payload) for _, payload in said]


class TestClosing:
    def test_handshake_goes_end_to_end(self) -> None:
        """The client's close goes upstream; messages still come down; the upstream's own answer comes back."""
        world = World()
        world.up(world.client.frame(CLOSE, close_payload(4001, b"bye")))
        assert world.upstream.got == [("close", 4001, b"bye")]
        assert world.done == ["closing"]
        assert world.asked == [(True, 0, "close", close_payload(4001, b"bye"), 0)]
        world.down(Frame(TEXT, b"last").serialize(mask=False))
        world.down(Frame(CLOSE, close_payload(4002, b"ok")).serialize(mask=False))
        assert world.client.got == [("text", b"last"), ("close", 4002, b"ok")]
        assert world.shut_peers == [True, False]
        assert len(world.asked) == 2  # the answer is not shown

    def test_a_close_without_code_stays_one(self) -> None:
        world = World()
        world.down(world.upstream.frame(CLOSE))
        assert world.client.got == [("close", 1005, b"")]

    def test_both_at_once(self) -> None:
        """Closes that cross are answers to each other."""
        world = World(None)
        world.up(world.client.frame(CLOSE, close_payload(4001, b"")))
        world.down(world.upstream.frame(CLOSE, close_payload(4002, b"")))
        world.relay.from_client.decided(ALLOW)
        assert (world.client.got, world.upstream.got) == ([("close", 4002, b"")], [("close", 4001, b"")])
        assert world.shut_peers == [True, False]

    def test_a_close_has_its_turn_behind_messages(self) -> None:
        world = World(None)
        world.up(world.say(b"x"), world.client.frame(CLOSE, close_payload(1000, b"")))
        world.relay.eof(world.relay.client)
        assert world.upstream.got == []
        world.relay.from_client.decided(ALLOW)
        assert world.upstream.got == [("text", b"x"), ("close", 1000, b"")]

    def test_a_dropped_close_goes_on_without_what_it_says(self) -> None:
        world = World(DROP)
        world.up(world.client.frame(CLOSE, close_payload(4001, b"secret")))
        assert world.upstream.got == [("close", 1005, b"")]

    @pytest.mark.parametrize("body", [b"\x03", b"\x00\x01", b"\x03\xe8\xff", close_payload(1000, b"x" * 124)])
    def test_a_close_replaced_by_what_is_none(self, body: bytes) -> None:
        world = World(replace(body))
        world.up(world.client.frame(CLOSE, close_payload(1000, b"")))
        assert world.upstream.got == [("close", 1011, b"")]

    def test_a_close_replaced(self) -> None:
        world = World(replace(close_payload(1000, b"")))
        world.up(world.client.frame(CLOSE, close_payload(4001, b"secret")))
        assert world.upstream.got == [("close", 1000, b"")]

    def test_an_agent_closes_both_sides(self) -> None:
        world = World(close(4008, b"no"))
        world.up(world.say(b"x"), world.say(b"y"))
        assert world.client.got == world.upstream.got == [("close", 4008, b"no")]
        assert world.done == [("ended", 4008, "close")]
        assert world.shut_peers == [True, False]
        world.up(world.say(b"z"))
        assert len(world.asked) == 1

    def test_a_code_that_may_not_be_sent(self) -> None:
        world = World(close(2000, b"no"))
        world.up(world.say(b"x"))
        assert world.client.got == [("close", 1008, b"no")]

    def test_a_failure_is_1011(self) -> None:
        world = World(None)
        world.up(world.say(b"x"))
        world.relay.from_client.decided(Decision(Verb.FAIL, 504, agent="a", reason="timeout"))
        assert world.client.got == world.upstream.got == [("close", 1011, b"")]
        assert world.done == [("ended", 1011, "timeout")]

    def test_the_other_direction_is_cancelled(self) -> None:
        world = World(None, close(1008))
        world.up(world.say(b"x"))
        world.down(world.upstream.frame(TEXT, b"y"))
        assert ("cancel", True) in world.done
        world.relay.from_client.decided(ALLOW)  # on its way already
        assert world.upstream.got == [("close", 1008, b"")]

    def test_a_lost_client(self) -> None:
        """The upstream is told, the question is given up."""
        world = World(None)
        world.up(world.say(b"x"))
        world.relay.lost(world.relay.client)
        assert world.upstream.got == [("close", *GONE)]
        assert world.done == [("cancel", True)]

    def test_a_client_lost_behind_its_close(self) -> None:
        """It closed and left without waiting for the answer: its code still arrives."""
        world = World(None)
        world.up(world.client.frame(CLOSE, close_payload(4001, b"")))
        world.relay.lost(world.relay.client)
        world.relay.from_client.decided(ALLOW)
        assert world.upstream.got == [("close", 4001, b"")]
        assert world.shut_peers == [True, False]

    def test_an_upstream_that_just_ends(self) -> None:
        world = World()
        world.down(world.upstream.frame(TEXT, b"x"))
        world.relay.eof(world.relay.upstream)
        assert world.client.got == [("text", b"x"), ("close", *GONE)]

    def test_an_upstream_that_ends_instead_of_answering(self) -> None:
        world = World()
        world.up(world.client.frame(CLOSE, close_payload(1000, b"")))
        world.relay.eof(world.relay.upstream)
        assert world.client.got == [("close", *GONE)]
        assert world.shut_peers == [True, False]

    def test_closed_by_the_proxy(self) -> None:
        world = World()
        world.relay.close(1001, b"restart")
        world.relay.close(1001, b"again")
        assert world.client.got == world.upstream.got == [("close", 1001, b"restart")]
        assert world.shut_peers == [True, False]

    def test_a_close_in_the_middle_of_a_message(self) -> None:
        """RFC 6455 5.4: the message is given up, the close counts."""
        world = World()
        world.up(world.client.frame(TEXT, b"ha", False), world.client.frame(CLOSE, close_payload(1011, b"")))
        assert world.upstream.got == [("close", 1011, b"")]


class TestBrokenRules:
    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            (bytes((0x81, 0x01, 0x41)), 1002),  # not masked
            (bytes((0xC1, 0x80, 0, 0, 0, 0)), 1002),  # compressed, which was not agreed on
            (bytes((0x83, 0x80, 0, 0, 0, 0)), 1002),  # reserved opcode
            (bytes((0x80, 0x80, 0, 0, 0, 0)), 1002),  # a continuation of nothing
            (bytes((0x89, 0xFE, 0, 126, 0, 0, 0, 0)) + bytes(126), 1002),  # a ping over 125 bytes
            (bytes((0x09, 0x80, 0, 0, 0, 0)), 1002),  # a fragmented ping
            (bytes((0x88, 0x81, 0, 0, 0, 0, 3)), 1002),  # a close of one byte
            (bytes((0x88, 0x82, 0, 0, 0, 0, 0x03, 0xED)), 1002),  # code 1005
            (bytes((0x88, 0x83, 0, 0, 0, 0, 0x03, 0xE8, 0xFF)), 1007),  # a reason that is not UTF-8
            (bytes((0x81, 0x81, 0, 0, 0, 0, 0xFF)), 1007),  # text that is not UTF-8
            (bytes((0x01, 0x81, 0, 0, 0, 0, 0xFF)), 1007),  # known at the first fragment
            (bytes((0x81, 0x81, 0, 0, 0, 0, 0xC3)), 1007),  # cut within a character
            (bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + bytes(4), 1009),
        ],
    )
    def test_tells_the_sender_which_and_the_other_side_that_it_is_gone(self, raw: bytes, code: int) -> None:
        world = World()
        world.up(world.say(b"before"), raw, world.say(b"after"))
        assert [got[:2] for got in world.client.got] == [("close", code)]
        assert world.upstream.got == [("text", b"before"), ("close", *GONE)]
        assert [done[:2] for done in world.done] == [("ended", code)]

    def test_has_its_turn(self) -> None:
        world = World(None)
        world.up(world.say(b"before"), b"\x81\x00")
        assert world.client.got == []
        world.relay.from_client.decided(ALLOW)
        assert [got[:2] for got in world.client.got] == [("close", 1002)]
        assert world.upstream.got[0] == ("text", b"before")

    def test_of_the_upstream(self) -> None:
        world = World()
        world.down(bytes((0x81, 0x81, 0, 0, 0, 0, 65)))  # masked
        assert [got[:2] for got in world.upstream.got] == [("close", 1002)]
        assert world.client.got == [("close", *GONE)]

    def test_a_message_too_long_in_fragments(self) -> None:
        world = World(limit=10)
        world.up(world.client.frame(BINARY, bytes(10)))
        world.up(world.client.frame(BINARY, bytes(6), False), world.client.frame(CONT, bytes(5)))
        assert [got[:2] for got in world.client.got] == [("close", 1009)]
        assert world.upstream.got[0] == ("binary", bytes(10))

    def test_more_messages_than_allowed(self) -> None:
        """A second's worth at once, then as they refill."""
        world, clock = World(), Clock()
        world.relay.from_client.limit(2, clock)
        world.up(world.say(b"1"), world.say(b"2"))
        clock.ms(500)
        world.up(world.say(b"3"))
        assert len(world.upstream.got) == 3
        world.up(world.say(b"4"))
        assert world.client.got == [("close", 1008, b"too many messages")]
        assert ("ended", 1008, "too many messages") in world.done

    @pytest.mark.parametrize("opcode", [PING, PONG])
    def test_pings_count_as_messages(self, opcode: Opcode) -> None:
        """A flood of them costs as much; the upstream's are its own business."""
        world = World()
        world.relay.from_client.limit(2, Clock())
        world.down(world.upstream.frame(opcode, b"u") * 5)
        world.up(*[world.client.frame(opcode, b"c")] * 3)
        pongs = [("pong", b"c"), ("pong", b"c")] if opcode is PING else []
        assert world.client.got == [*pongs, ("close", 1008, b"too many messages")]


class TestAnything:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=8), st.booleans())
    def test_no_bytes_raise(self, said: list[tuple[bool, bytes]], is_coded: bool) -> None:
        """Whatever either end says, however it is broken: at most one ending, both are told, nothing follows."""
        world = World(deflate=Deflate() if is_coded else None, limit=100)
        told: dict[bool, list[bytes]] = {True: [], False: []}
        world.send = lambda to, data: told[to.is_client].append(data)  # type: ignore[method-assign]
        for is_up, data in said:
            way = world.relay.from_client if is_up else world.relay.from_upstream
            way.take(data)
        if world.relay.is_over:
            assert world.shut_peers == [True, False]
            assert all(pieces[-1][0] == 0x88 for pieces in told.values())

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from([b"\x81\x80", b"\x01\x80", b"\x80\x80", b"\x89\x80", b"\x88\x80", b"\xc1\x80"])))
    def test_no_order_of_frames_raises(self, heads: list[bytes]) -> None:
        world = World(deflate=Deflate())
        world.send = lambda to, data: None  # type: ignore[method-assign]
        for head in heads:
            world.up(head + bytes(4))


class TestCompression:
    def test_agents_see_what_was_said(self) -> None:
        world = World(deflate=Deflate())
        for _ in range(3):
            world.up(world.say(b"a" * 1000))
            world.down(world.upstream.frame(BINARY, b"b" * 1000))
        assert [asked[3] for asked in world.asked] == [b"a" * 1000, b"b" * 1000] * 3
        assert world.upstream.got == [("text", b"a" * 1000)] * 3
        assert world.client.got == [("binary", b"b" * 1000)] * 3

    @pytest.mark.parametrize("bits", range(8, 16))
    @pytest.mark.parametrize("alone", [False, True])
    def test_every_window(self, bits: int, alone: bool) -> None:
        """Towards a window of 8, which zlib cannot write, messages go uncompressed."""
        world = World(deflate=Deflate(alone, alone, bits, bits))
        text = os.urandom(300).hex().encode() * 4
        for _ in range(2):
            if bits == 8:  # nor can the test: what it says has no long distances
                encoder = zlib.compressobj(wbits=-9)
                text = os.urandom(80)
                coded = (encoder.compress(text) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]
                world.up(_masked(0xC2, coded))
            else:
                world.up(world.client.frame(BINARY, text))
            assert world.upstream.got[-1] == ("binary", text)

    def test_what_came_uncompressed_is_not_compressed(self) -> None:
        world = World(deflate=Deflate())
        sent: list[bytes] = []
        world.send = lambda to, data: sent.append(data)  # type: ignore[method-assign]
        world.down(bytes((0x81, 3)) + b"abc")
        world.down(world.upstream.frame(TEXT, b"abc"))
        assert sent[0] == bytes((0x81, 3)) + b"abc"
        assert sent[1][0] == 0xC1

    def test_a_bomb_is_not_inflated(self) -> None:
        world = World(deflate=Deflate(), limit=100_000)
        world.up(world.client.frame(BINARY, bytes(200_000)))
        assert [got[:2] for got in world.client.got] == [("close", 1009)]
        assert world.asked == []

    def test_not_inflated_ahead_of_its_turn(self) -> None:
        """While a question waits, a thousand messages of 64 KiB in a read stay what they came as."""
        world = World(None, deflate=Deflate())
        raw = b"".join(world.client.frame(BINARY, bytes(65_536)) for _ in range(1000))
        assert len(raw) < WEBSOCKET_HELD_BYTES
        world.up(raw)
        assert sum(len(message.payload) for message in world.relay.from_client.messages) < 5_000_000

    def test_garbage(self) -> None:
        world = World(deflate=Deflate())
        world.up(_masked(0xC2, b"\xff\xff\xff"))
        assert [got[:2] for got in world.client.got] == [("close", 1002)]

    def test_no_compressor_before_one_is_needed(self) -> None:
        world = World(deflate=Deflate())
        world.up(_masked(0x81, b"plain"))
        for peer in (world.relay.client, world.relay.upstream):
            assert not hasattr(peer.coding, "encoder")


def _masked(first: int, payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload


class TestPressure:
    def test_a_sender_is_not_read_while_too_much_waits(self) -> None:
        world = World(None)
        world.up(world.say(b"x"))
        world.up(world.client.frame(BINARY, bytes(WEBSOCKET_HELD_BYTES)))
        assert world.held == {True}
        world.relay.from_client.decided(ALLOW)
        assert world.held == set()
        assert world.upstream.got[1] == ("binary", bytes(WEBSOCKET_HELD_BYTES))

    def test_a_full_receiver_stops_its_sender_only(self) -> None:
        world = World(takes=1000)
        world.up(world.client.frame(BINARY, bytes(2000)), world.say(b"x"))
        assert world.held == {True}
        assert len(world.upstream.got) == 1
        world.down(world.upstream.frame(TEXT, b"y"))
        assert world.client.got == [("text", b"y")]
        world.relay.writable(world.relay.upstream)
        assert world.held == set()
        assert world.upstream.got[1:] == [("text", b"x")]

    def test_pings_of_a_client_that_does_not_read_cost_one_answer(self) -> None:
        world = World()
        world.relay.full(world.relay.client)
        world.up(*(world.client.frame(PING, b"%d" % i) for i in range(100)))
        assert world.client.got == []
        world.relay.writable(world.relay.client)
        assert world.client.got == [("pong", b"99")]

    def test_a_flood_of_frames_gives_way_to_the_loop(self) -> None:
        world = World()
        world.up(world.client.frame(PONG) * 100_000)
        assert world.done == [("again", True)]
        turns = 0
        while world.done:
            world.done.clear()
            world.relay.from_client.go_on()
            turns += 1
        assert turns > 100_000 * 6 / 4096 / WEBSOCKET_FRAMES_PER_TURN

    def test_a_flood_that_goes_on_gets_no_more_turns(self) -> None:
        world = World()
        for _ in range(5):
            world.up(world.client.frame(PONG) * 40_000)
        assert world.done == [("again", True)]
        assert world.held == {True}

    def test_a_million_tiny_fragments_are_not_a_million_objects(self) -> None:
        world = World()
        world.up(world.client.frame(BINARY, b"a", False))
        world.up(world.client.frame(CONT, b"b", False) * 30)
        assert type(world.relay.from_client._joined) is bytearray
        world.up(world.client.frame(CONT))
        assert world.upstream.got == [("binary", b"a" + b"b" * 30)]

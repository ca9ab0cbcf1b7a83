"""The client of a real server: HTTP, a recorder's file while it grows, and Ctrl-C in the middle."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from asyncio.base_events import BaseEventLoop
from functools import partialmethod

import pytest

from simbatch.profiler import server as tail_module
from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.records.lines import RecordedStep
from simbatch.profiler.server import Tail
from simbatch.profiler.server.http import Connection, Endpoint
from simbatch.serving.processes import RotatingFile, ended_by_signals, run_loop
from simbatch.sim.errors import UserError

EVENTS = [{"choices": [{"text": "é"}]}, {"choices": [{"text": ""}]}, {"choices": [], "usage": {"completion_tokens": 2}}]
BODY = b": ping\n\n" + b"".join(b"data: %b\n\n" % json.dumps(e, ensure_ascii=False).encode() for e in EVENTS)
BODY += b"data: [DONE]\n\n"


class Wire(asyncio.Transport):
    """What a connection writes, and whether it was closed."""

    def __init__(self):
        super().__init__()
        self.sent, self.is_closed = b"", False

    def write(self, data):
        self.sent += data

    def close(self):
        self.is_closed = True

    def is_closing(self):
        return self.is_closed


def answered(*pieces, closes=False):
    """The answer to a request, made of these pieces, and the connection."""

    async def run():
        connection = Connection()
        connection.connection_made(Wire())
        asking = asyncio.create_task(connection.exchange(b"?"))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        if closes:
            connection.connection_lost(None)
        return await asyncio.wait_for(asking, 1), connection

    return asyncio.run(run())


def chunked(body, size):
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [3, 40, 10_000])
@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_a_stream_is_the_same_however_it_is_cut(size, cut):
    data = HEAD + chunked(BODY, size)
    answer, connection = answered(*(data[i : i + cut] for i in range(0, len(data), cut)))
    assert (answer.status, len(answer.chunk_s), answer.num_output_tokens, answer.error) == (200, 2, 2, "")
    assert answer.chunk_s == sorted(answer.chunk_s)
    assert connection.is_open


def test_an_error_in_the_middle_of_a_stream():
    body = BODY[: BODY.index(b"data: [")] + b'data: {"error": {"message": "out of memory"}}\n\n'
    answer, _ = answered(HEAD + chunked(body, 50))
    assert (len(answer.chunk_s), answer.error) == (2, "out of memory")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "the  queue\\nis full"}}', "HTTP 503: the queue is full"),
        (b'{"error": "full"}', "HTTP 503: full"),
        (b'{"message": "full"}', "HTTP 503: full"),
        (b"<html>", "HTTP 503: <html>"),
        (b"", "HTTP 503: Service Unavailable"),
    ],
)
def test_a_refusal_says_why(body, said):
    answer, connection = answered(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    assert answer.message == said
    assert connection.is_open


def test_a_body_may_last_until_the_connection_ends():
    answer, connection = answered(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", BODY, closes=True)
    assert (len(answer.chunk_s), answer.num_output_tokens) == (2, 2)
    assert not connection.is_open


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0\r\n\r\n", HEAD + b"x\r\n", HEAD + chunked(b"data: {\n\n", 99), HEAD + chunked(b"data: 3\n\n", 99)],
)
def test_what_is_not_http_breaks_the_connection(data):
    with pytest.raises(ConnectionError, match="cannot be read"):
        answered(data)


def test_an_answer_that_was_cut_off():
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        answered(HEAD + chunked(BODY, 40)[:-5], closes=True)


def test_addresses():
    for url in ("http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"):
        assert Endpoint.of(url)[1:] == ("h", 8000, False, "")
    assert Endpoint.of("https://h/api/v1")[1:] == ("h", 443, True, "/api")
    request = Endpoint.of("https://h/api").request("POST", "/v1/x", b"{}", ("A: b",))
    assert request.startswith(b"POST /api/v1/x HTTP/1.1\r\nHost: h:443\r\nA: b\r\n")
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")
    for url in ("localhost:8000", "ftp://h", "http://", "http://h:x", ""):
        with pytest.raises(UserError, match="must be an address"):
            Endpoint.of(url)


def line(number):
    times = {key: number + share for key, share in (("s0", 0.0), ("s1", 0.1), ("u0", 0.8), ("u1", 0.9))}
    return json.dumps({**times, "nd": 1, "ctx": number, "pre": [], "run": 1, "wait": 0, "pree": 0})


def test_lines_come_once_across_rotations(tmp_path):
    path = tmp_path / "steps.jsonl"
    file = RotatingFile(path, {"model": "m"}, part_bytes=700)
    file.write(line(0))
    tail = Tail(path)
    assert tail.facts["model"] == "m"
    found = []
    for number in range(1, 30):
        file.write(line(number))
        if number % 2:
            found += tail.new()
    file.write(json.dumps({"memory": {"weights_bytes": 7}}))
    found += asyncio.run(tail.settled())
    assert [step.context_tokens for step in found if isinstance(step, RecordedStep)] == list(range(1, 30))
    assert tail.facts["weights_bytes"] == 7
    cut = tmp_path / "run.jsonl"
    cut.write_bytes(tail.cut())
    assert read_steps(cut).context_tokens.tolist() == list(range(1, 30))
    assert tail.cut().count(b"\n") == 1  # the server's first line alone
    tail.close()
    file.close()


def test_what_is_no_recorder_s_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tail_module, "FIRST_LINES_WAIT_S", 0.0)
    with pytest.raises(UserError, match="no steps are written there"):
        Tail(tmp_path / "absent.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("not JSON\n")
    with pytest.raises(UserError, match="not valid JSON"):
        Tail(other)


async def waits_beside(task):
    other = asyncio.create_task(task())
    await asyncio.sleep(60)
    await other


def test_a_task_that_the_interruption_met_is_not_printed(caplog):
    async def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(waits_beside(interrupted))
    gc.collect()
    assert caplog.text == ""


@pytest.mark.parametrize("moment", ["the loop is built", "the coroutine is to begin"])
def test_an_interruption_at_the_loop_s_begin_prints_nothing(moment, monkeypatch, capfd):
    began = []

    async def main():
        began.append(1)

    def interrupting(self, *arguments, of):
        signal.raise_signal(signal.SIGINT)
        return of(self, *arguments)

    place = {"the loop is built": (BaseEventLoop, "__init__"), "the coroutine is to begin": (asyncio.Runner, "run")}
    monkeypatch.setattr(*place[moment], partialmethod(interrupting, of=getattr(*place[moment])))
    with ended_by_signals(), pytest.raises(KeyboardInterrupt):  # a job in the background ignores SIGINT from its start
        run_loop(main())
    gc.collect()  # what was lost is a warning, and a warning an error
    assert capfd.readouterr().err == ""
    assert not began


def test_other_tasks_that_failed_are(caplog):
    async def fails():
        raise ValueError("lost")

    async def main():
        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()
        return 3

    assert run_loop(main()) == 3
    assert "lost" in caplog.text

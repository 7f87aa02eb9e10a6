"""A web server on this machine that misbehaves as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Act:
    """How one request is answered, where that differs from a good server."""

    status: int = 0  # an error
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection breaks after so many bytes of the body
    claim: int = 0  # bytes that Content-Length says too many (or, below 0, too few)
    extra: bytes = b""  # sent behind the body, and counted in its length
    length: bool = True  # whether Content-Length is sent
    chunked: bool = False
    ranges: bool = True
    obeys: bool = True  # If-Range
    shift: int = 0  # of the place that a range begins at
    body: bytes | None = None  # in place of the file
    tag: str | None = None  # in place of the ETag of the file; "" sends none


@dataclass
class Site:
    """What is served; ``acts`` are used up one a request, then the server is good."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    acts: list[Act] = field(default_factory=list)
    always: Act = field(default_factory=Act)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # path, Range, If-Range
    sent: int = 0  # bytes of bodies

    def tag(self, path: str) -> str:
        """The ETag of a file: another one for other content."""
        return f'"{hash(self.files[path]) & 0xFFFFFFFF:08x}"'


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer as the next act says."""
        site = self.site
        self.close_connection = True
        wanted, condition = self.headers.get("Range", ""), self.headers.get("If-Range", "")
        site.asked.append((self.path, wanted, condition))
        act = site.acts.pop(0) if site.acts else site.always
        if act.status or self.path not in site.files:
            self.send_response(act.status or 404)
            for name, value in act.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._body(act, wanted, condition)

    def _body(self, act: Act, wanted: str, condition: str) -> None:
        site = self.site
        data = site.files[self.path] if act.body is None else act.body
        tag = site.tag(self.path) if act.tag is None else act.tag
        start, total, status = 0, len(data), 200
        same = not condition or condition == tag or not act.obeys
        if wanted and act.ranges and same:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        data = data[start:] + act.extra
        self.send_response(status)
        if tag:
            self.send_header("ETag", tag)
        for name, value in act.headers.items():
            self.send_header(name, value)
        if status == 206:
            place = start + act.shift
            self.send_header("Content-Range", f"bytes {place}-{total - 1}/{total}")
        if act.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif act.length:
            self.send_header("Content-Length", str(len(data) + act.claim))
        self.end_headers()
        self._send(data if act.cut is None else data[: act.cut], act)

    def _send(self, data: bytes, act: Act) -> None:
        self.site.sent += len(data)
        try:
            if act.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if data else b"")
                self.wfile.write(b"0\r\n\r\n" if act.cut is None else b"")
            else:
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass


@contextmanager
def serving() -> Iterator[Site]:
    """A site on a port of this machine; requests are answered in threads."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""What is said at the control endpoint: a client asks with one JSON object, the daemon answers as it sends frames.

Knows the bytes of requests and answers, and where the endpoint is; opens no socket. `docs/2-wire-format.md` says who
says what when.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .wire import (
    VERSION,
    Buffer,
    Message,
    VersionError,
    WireError,
    file_name,
    malformed,
    pack_head,
    topic_bytes,
    version,
    whole,
)

MAX_REQUEST = 4096
"""Bytes of a request; what the daemon binds needs to take no longer message."""
TOPIC = b"\1\0"
"""Of answers: no stream has it, for its name is printable."""

RequestKind = Literal["hello", "ping", "next", "release"]


@dataclass(frozen=True)
class Request:
    """What a client asks at the control endpoint.

    streams: those whose frames are wanted; None for all. shared: the client can read shared memory. wait: answer only
    when there is a frame. release: tokens of frames that the client has done with.
    """

    kind: RequestKind
    streams: tuple[str, ...] | None = None
    shared: bool = False
    wait: bool = True
    release: tuple[int, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A file in `folder` with `value` in it: who can read it can read the frames in shared memory."""

    folder: str
    file: str
    value: str


@dataclass(frozen=True)
class Welcome:
    """What a daemon says of itself; `shared` is None where it offers no shared memory."""

    run_id: str
    boot_id: str
    model: str
    streams: tuple[str, ...]
    encoding: str
    pixel_format: str
    shared: Probe | None = None


def control_endpoint(endpoint: str) -> str:
    """Where the requests go of those who get frames at `endpoint`: the next port, or PATH.control.

    ValueError for an endpoint that has no such neighbour.
    """
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return f"{endpoint}.control"
    host, _, port = endpoint.rpartition(":")
    if not (endpoint.startswith("tcp://") and port.isascii() and port.isdigit() and 1 <= int(port) < 0xFFFF):
        raise ValueError(
            "endpoint must be a ZeroMQ address such as tcp://127.0.0.1:5555 or ipc:///run/frames, with a port of "
            f"at most 65534, got {endpoint!r}"
        )
    return f"{host}:{int(port) + 1}"


def pack_answer(kind: str, **fields: Any) -> bytes:
    """An answer of `welcome`, `refused`, `pong` or `none`; a frame is an answer too, and has its own topic."""
    return pack_head(TOPIC, {"version": VERSION, "kind": kind, **fields})


def pack_welcome(welcome: Welcome) -> bytes:
    """The answer to `hello`."""
    probe = welcome.shared
    shared = None if probe is None else {"folder": probe.folder, "probe": probe.file, "probe_value": probe.value}
    return pack_answer("welcome", **{**vars(welcome), "shared": shared})


def to_welcome(message: Message) -> Welcome:
    """What an answer of kind `welcome` says. WireError for a malformed one."""
    header = message.header
    try:
        shared = header["shared"]
        return Welcome(
            **{name: str(header[name]) for name in ("run_id", "boot_id", "model", "encoding", "pixel_format")},
            streams=tuple(map(str, header["streams"])),
            shared=None
            if shared is None
            else Probe(str(shared["folder"]), file_name(shared["probe"]), str(shared["probe_value"])),
        )
    except (KeyError, TypeError) as error:
        raise malformed("a welcome", error) from error


def pack_request(request: Request) -> bytes:
    """WireError for a request of more than MAX_REQUEST bytes, which the daemon would not take."""
    fields: dict[str, Any] = {"version": VERSION, "kind": request.kind}
    if request.kind == "next":
        fields |= {"streams": request.streams, "shared": request.shared, "wait": request.wait}
    if request.kind in ("next", "release"):
        fields["release"] = request.release
    data = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_REQUEST:
        raise WireError(f"a request must be at most {MAX_REQUEST} bytes, got {len(data)}: name fewer streams, or all")
    return data


def unpack_request(data: Buffer) -> Request:
    """VersionError for a request of a newer version, WireError for anything else that is not of this format."""
    if len(data) > MAX_REQUEST:
        raise WireError(f"a request must be at most {MAX_REQUEST} bytes, got {len(data)}")
    try:
        fields = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a request must be a JSON object in UTF-8 ({error})") from error
    if not isinstance(fields, dict):
        raise WireError(f"a request must be a JSON object, got {type(fields).__name__}")
    kind, streams = fields.get("kind"), fields.get("streams")
    if version(fields) > VERSION:
        raise VersionError(f"the client speaks wire format {version(fields)}, this daemon {VERSION}: update the daemon")
    if not isinstance(kind, str) or kind not in get_args(RequestKind):
        raise WireError(f"'kind' of a request must be {', '.join(get_args(RequestKind))}, got {kind!r}")
    if streams is not None:
        if not isinstance(streams, list) or not streams or not all(isinstance(name, str) for name in streams):
            raise WireError(f"'streams' must be a list of names, or null for all, got {streams!r}")
        for name in streams:
            topic_bytes(name)
    shared, wait, release = fields.get("shared", False), fields.get("wait", True), fields.get("release", [])
    if type(shared) is not bool or type(wait) is not bool:
        raise WireError(f"'shared' and 'wait' must be true or false, got {shared!r} and {wait!r}")
    if not isinstance(release, list):
        raise WireError(f"'release' must be a list of tokens, got {release!r}")
    tokens = tuple(whole("release", token) for token in release)
    return Request(kind, None if streams is None else tuple(streams), shared, wait, tokens)  # type: ignore[arg-type]

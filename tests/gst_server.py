"""GStreamer's RTSP server, which is not of our making, as a program for the Python that comes with the system.

Knows nothing of the project: it serves at /cam what lies in a folder, one access unit a file, in the order of their
names, again and again, to each client from the first on; and takes at /record what is published there. It prints its
port when it is ready. Where GStreamer is not there it ends with status 3 and says what is missing; Debian has it as
gir1.2-gst-rtsp-server-1.0 and python3-gi.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

MISSING = 3

try:
    import gi

    for module in ("Gst", "GstApp", "GstRtsp", "GstRtspServer"):
        gi.require_version(module, "1.0")
    from gi.repository import Gio, GLib, Gst, GstApp, GstRtsp, GstRtspServer
except (ImportError, ValueError) as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(MISSING)

ANNEX_B = "stream-format=byte-stream,alignment=au"
CODECS = {
    "h264": (f"video/x-h264,{ANNEX_B}", "h264parse ! rtph264pay config-interval=-1"),
    "h265": (f"video/x-h265,{ANNEX_B}", "h265parse ! rtph265pay config-interval=-1"),
    "mjpeg": ("image/jpeg", "jpegparse ! rtpjpegpay"),
}
"""By name: what the files are, and the elements that make packets of them."""
ROLE = "watcher"


def factory(options: argparse.Namespace) -> GstRtspServer.RTSPMediaFactory:
    """What makes the stream, for each client one of its own."""
    caps, packets = CODECS[options.codec]
    launch = f"( appsrc name=units format=time caps={caps},framerate={options.rate}/1 ! {packets} name=pay0"
    launch += " audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay1 )" if options.sound else " )"
    try:
        Gst.parse_launch(launch)
    except GLib.Error as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(MISSING)
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(launch)
    if options.only:
        made.set_protocols(getattr(GstRtsp.RTSPLowerTrans, options.only.upper()))
    if options.user:
        made.set_permissions(permissions())
    units = [path.read_bytes() for path in sorted(options.folder.iterdir())]
    made.connect("media-configure", lambda _, media: feed(media.get_element(), units, options.rate))
    return made


def recorder(options: argparse.Namespace) -> GstRtspServer.RTSPMediaFactory:
    """What takes the H.264 of a client that publishes it, and adds it to a file."""
    made = GstRtspServer.RTSPMediaFactory()
    made.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    made.set_latency(0)
    sink = f"filesink location={options.record} append=true buffer-mode=unbuffered sync=false async=false"
    made.set_launch(f"( rtph264depay name=depay0 ! h264parse config-interval=-1 ! video/x-h264,{ANNEX_B} ! {sink} )")
    if options.user:
        made.set_permissions(permissions())
    return made


def permissions() -> GstRtspServer.RTSPPermissions:
    """Only who is logged in may come."""
    allowed = GstRtspServer.RTSPPermissions()
    for right in ("access", "construct"):
        allowed.add_permission_for_role(ROLE, f"media.factory.{right}", True)
    return allowed


def feed(pipeline: Gst.Bin, units: list[bytes], rate: int) -> None:
    """Give access units whenever they are asked for; they are sent when they are due."""
    numbers = itertools.count()

    def give(source: GstApp.AppSrc, _: int) -> None:
        number = next(numbers)
        unit = Gst.Buffer.new_wrapped(units[number % len(units)])
        unit.pts = unit.dts = number * Gst.SECOND // rate
        unit.duration = Gst.SECOND // rate
        source.emit("push-buffer", unit)

    pipeline.get_by_name("units").connect("need-data", give)


def login(options: argparse.Namespace) -> GstRtspServer.RTSPAuth:
    """What asks clients for the user and password, and encrypts the connection."""
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", ROLE)
    if options.scheme == "basic":
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(options.user, options.password, token)
    if options.certificate:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(options.certificate))
    return auth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--codec", choices=CODECS, default="h264")
    parser.add_argument("--rate", type=int, default=25, help="frames a second")
    parser.add_argument("--sound", action="store_true", help="a second track beside the video")
    parser.add_argument("--record", help="where to write what is published at /record")
    parser.add_argument("--port", default="0")
    parser.add_argument("--only", choices=("tcp", "udp"), help="the one transport that is not refused")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    parser.add_argument("--scheme", choices=("basic", "digest"), default="digest")
    parser.add_argument("--certificate", help="PEM of it and its key: with it, and a user, rtsps is what is served")
    options = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    server.get_mount_points().add_factory("/cam", factory(options))
    if options.record:
        server.get_mount_points().add_factory("/record", recorder(options))
    if options.user:
        server.set_auth(login(options))
    if not server.attach(None):
        sys.exit(f"port {options.port} must be free")
    GLib.timeout_add_seconds(2, lambda: server.get_session_pool().cleanup() >= 0)  # else no session ever times out
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()

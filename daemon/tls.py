"""Whether the other end of an encrypted connection is the one that it says it is.

Knows certificates and whom this host trusts; no protocol inside TLS.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

from .errors import ConfigError, SourceError
from .source import LiveOptions

_SYSTEM: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Where systems keep the certificates that they trust, if Python was not built to know it."""


def client_context(options: LiveOptions) -> ssl.SSLContext:
    """What a connection of ours is encrypted with; it checks certificates if `options` say so.

    Raises SourceError if the file of those to trust is no longer what it was when the settings were read.
    """
    if options.tls_verify:
        try:
            return ssl.create_default_context(cafile=options.tls_ca_file or None)
        except OSError as error:
            raise SourceError(f"tls_ca_file {options.tls_ca_file!r} must hold certificates, and does not") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ffmpeg_options(options: LiveOptions) -> dict[str, str]:
    """The same for FFmpeg, whose own list of whom to trust is that of the machine it was built on."""
    if not options.tls_verify:
        return {"tls_verify": "0"}
    system = (ssl.get_default_verify_paths().cafile, *_SYSTEM)
    trusted = options.tls_ca_file or next((path for path in system if path and Path(path).is_file()), "")
    return {"tls_verify": "1"} | ({"ca_file": trusted} if trusted else {})


def distrusted(reason: str) -> str:
    """What there is to say when a certificate is not trusted; `reason` in OpenSSL's words."""
    return (
        f"the certificate is not trusted ({reason.rstrip('.').lower()}); name its authority's file as tls_ca_file, "
        "or set tls_verify = false to trust whoever answers"
    )


def why_distrusted(host: str, port: int, options: LiveOptions) -> str | None:
    """Ask a server for its certificate, and say why it is not trusted; None if it is, or if that cannot be told."""
    if not options.tls_verify:
        return None
    try:
        with socket.create_connection((host, port), options.open_timeout_s) as plain:
            client_context(options).wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return distrusted(error.verify_message)
    except (OSError, ValueError):
        return None
    return None


def check_ca_file(path: str) -> None:
    """ConfigError unless the file holds certificates."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError("must hold certificates as PEM, and does not") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise ConfigError(f"cannot be read ({why})") from error

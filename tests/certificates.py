"""Certificates for servers of tests.

Knows the program openssl; a test is skipped where it is missing.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def certificate(folder: Path, names: str = "IP:127.0.0.1", days: int = 1) -> tuple[ssl.SSLContext, Path]:
    """What a server of these names needs, and the file of the certificate, which it signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, public = folder / "own-key.pem", folder / "own.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days), "-subj", "/CN=camera"]
    made = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(public)]
    subprocess.run([*new, *made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, key)
    return context, public

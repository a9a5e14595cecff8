"""A certificate authority and a loopback certificate for one test, made by `openssl`."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost,DNS:kubernetes.default.svc"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM."""

    authority: Path
    chain: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, *, names: str = _NAMES) -> Certificate:
        """Write a fresh authority and a certificate of it into a directory."""
        made = cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
        ca_key, extensions = directory / "ca-key.pem", directory / "ext.cnf"
        extensions.write_text(f"{names}\nbasicConstraints=CA:FALSE\n")
        new = ["openssl", "req", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        _run(
            *new,
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=fake-ca",
            "-keyout",
            str(ca_key),
            "-out",
            str(made.authority),
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        request = directory / "request.pem"
        _run(*new, "-subj", "/CN=kube-apiserver", "-keyout", str(made.key), "-out", str(request))
        _run(
            "openssl",
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            str(request),
            "-CA",
            str(made.authority),
            "-CAkey",
            str(ca_key),
            "-CAcreateserial",
            "-extfile",
            str(extensions),
            "-out",
            str(made.chain),
        )
        return made

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)

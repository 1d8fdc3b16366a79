"""What is looked at before the service starts: who can reach it, its certificate, its folders."""

import ipaddress
import os
import ssl
import sys
from pathlib import Path
from typing import NoReturn

from app.errors import ConfigurationError
from app.settings import Settings


def check_exposure(settings: Settings) -> None:
    """Refuse to let the network in without a key, unless told to."""
    if settings.root_key or settings.allow_open:
        return
    if not _is_loopback(settings.host):
        raise ConfigurationError(
            f"HOST={settings.host!r}: anyone who reaches it could use the service: set "
            "SEALDEX_ROOT_KEY (`sealdex keygen` makes one), or SEALDEX_ALLOW_OPEN=true if that is "
            "meant"
        )
    print(
        "sealdex: no SEALDEX_ROOT_KEY is set, so any program on this machine can use the service",
        file=sys.stderr,
    )


def check_models_dir(settings: Settings) -> None:
    """Refuse a folder of models that is not there."""
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise ConfigurationError(f"SEALDEX_MODELS_DIR={settings.models_dir} is no directory")


def check_tls(settings: Settings) -> None:
    """Refuse a certificate or key that is missing, does not parse, or belongs to another one."""
    certificate, key = settings.ssl_cert_path, settings.ssl_key_path
    if certificate is not None and key is not None:
        _check_file("SSL_CERT_PATH", certificate)
        _check_file("SSL_KEY_PATH", key)
        _check_pair(certificate, key)
    elif certificate is not None:
        raise ConfigurationError("SSL_CERT_PATH is set, so SSL_KEY_PATH must name a file too")
    elif key is not None:
        raise ConfigurationError("SSL_KEY_PATH is set, so SSL_CERT_PATH must name a file too")


def _check_file(variable: str, path: Path) -> None:
    if not os.access(path, os.R_OK) or not path.is_file():
        raise ConfigurationError(f"{variable}={str(path)!r}: must name a PEM file that can be read")


def _check_pair(certificate: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate, key, password=_no_password
        )
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"SSL_CERT_PATH={str(certificate)!r} and SSL_KEY_PATH={str(key)!r}: must be a PEM "
            "certificate and the unencrypted PEM key that belongs to it"
        ) from error


def _no_password() -> NoReturn:
    """Refuse an encrypted key; OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

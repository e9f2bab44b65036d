"""Ed25519 keys that records are signed with. They are the user's own."""

from __future__ import annotations

import getpass
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "PASSWORD",
    "key_id",
    "load_private_key",
    "load_public_key",
    "new_key_pair",
    "password_for",
    "password_of_new_key",
    "public_pem",
    "signature",
    "signed_by",
]

PASSWORD = "LIGHTNING_UNLEARN_KEY_PASSWORD"
"""Environment variable with the password of the private key; without it, it is asked for."""


def new_key_pair(private: str | os.PathLike[str], public: str | os.PathLike[str], password: str | None) -> str:
    """Make a pair of keys, and write each to a PEM file; the private one is for its owner alone (mode 0600).

    Args:
        private: File to write the private key to.
        public: File to write the public key to, which may be given to anyone.
        password: Encrypts the private key; ``None`` writes it in the clear.

    Returns:
        The key's id.

    Raises:
        FileExistsError: If a file exists: a key that is written over is lost.
        ImportError: If the package cryptography is missing.
    """
    _import()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if Path(path).exists():
            raise FileExistsError(f"{path} exists, and a key that is written over is lost. Give a new name.")
    key = Ed25519PrivateKey.generate()
    lock = form.NoEncryption() if password is None else form.BestAvailableEncryption(password.encode())
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock)
    for path, content, mode in ((private, secret, 0o600), (public, public_pem(key), 0o644)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    return key_id(key.public_key())


def load_private_key(path: str | os.PathLike[str], password: str | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Args:
        path: PEM file.
        password: Password of the file, if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If others than the owner may read the file.
        ValueError: If it is no Ed25519 key, or the password is wrong or missing.
        ImportError: If the package cryptography is missing.
    """
    _import()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _content(path)
    if os.name == "posix" and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise PermissionError(f"Others than its owner may read the private key {path}. Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(content, None if password is None else password.encode())
    except TypeError:
        what = "has a password: set it" if password is None else "has no password: leave it out"
        raise ValueError(f"The private key {path} {what} ({PASSWORD}).") from None
    except ValueError:
        raise ValueError(f"{path} is no private key in PEM format, or its password is wrong.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is no Ed25519 key. Make one: lightning-unlearn record key")
    return key


def load_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Read a public key.

    Args:
        path: PEM file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no Ed25519 key.
        ImportError: If the package cryptography is missing.
    """
    _import()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_content(path))
    except ValueError:
        raise ValueError(f"{path} is no public key in PEM format.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path} is no Ed25519 key.")
    return key


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public key of a private one, in PEM format."""
    from cryptography.hazmat.primitives import serialization as form

    return key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def password_for(path: str | os.PathLike[str]) -> str | None:
    """The password of a private key: from the environment, or asked for at the terminal; ``None`` where it has none."""
    if b"ENCRYPTED" not in _content(path):
        return None
    if PASSWORD in os.environ:
        return os.environ[PASSWORD]
    if not sys.stdin.isatty():
        raise ValueError(f"The private key {path} has a password, and there is no terminal to ask: set {PASSWORD}.")
    return getpass.getpass(f"Password of {path}: ")


def password_of_new_key() -> str:
    """The password of a new private key: from the environment, or asked for twice at the terminal."""
    if PASSWORD in os.environ:
        return os.environ[PASSWORD]
    if not sys.stdin.isatty():
        raise ValueError(f"There is no terminal to ask for the password of the new key: set {PASSWORD}.")
    password = getpass.getpass("Password of the new key: ")
    if password != getpass.getpass("Once more: "):
        raise ValueError("The two passwords differ.")
    return password


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of the hash of a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signature(key: Ed25519PrivateKey, digest: str) -> str:
    """Signature of the hash of a record, as hexadecimal digits."""
    return key.sign(_message(digest)).hex()


def signed_by(key: Ed25519PublicKey, digest: str, value: str) -> bool:
    """Whether a signature is one of this key, of this hash."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(value), _message(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(digest: str) -> bytes:
    return b"lu-sig-v1\0" + bytes.fromhex(digest)


def _content(path: str | os.PathLike[str]) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no key {path} (looked in {Path.cwd()}). `record key` makes one.")
    return Path(path).read_bytes()


def _import() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ImportError(
            'Signing and checking of records needs cryptography: pip install "lightning-unlearn[record]"'
        ) from None

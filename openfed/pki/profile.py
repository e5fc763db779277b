"""Issuance profiles: what certificates of a role may be, and for how long. See `certs/`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from openfed.errors import CertificateError
from openfed.pki.keys import CURVES

USAGES = ("server_auth", "client_auth")
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_KEYS = {"key", "lifetime", "backdate", "usages"}
_SHORTEST, _LONGEST = 60.0, 90 * 86400.0


@dataclass(frozen=True)
class Profile:
    key: str  # "P-256" or "P-384"
    lifetime_s: float
    backdate_s: float  # for clocks that disagree
    usages: tuple[str, ...]


def parse_profiles(value: object, where: str) -> Mapping[str, Profile]:
    """The roles of a profile file, as YAML gives it. Raises C19."""
    if not isinstance(value, dict) or not value:
        raise CertificateError("C19", f"{where}: expected a mapping of roles")
    return {str(role): _profile(settings, f"{where}: {role}") for role, settings in value.items()}


def _profile(settings: object, where: str) -> Profile:
    if not isinstance(settings, dict) or set(settings) != _KEYS:
        raise CertificateError("C19", f"{where}: expected exactly the keys {sorted(_KEYS)}")
    lifetime = _seconds(settings["lifetime"], f"{where}.lifetime")
    if not _SHORTEST <= lifetime <= _LONGEST:
        raise CertificateError("C19", f"{where}.lifetime: expected 1 minute to 90 days")
    usages = settings["usages"]
    if not isinstance(usages, list) or not usages or not set(usages) <= set(USAGES):
        raise CertificateError("C19", f"{where}.usages: expected some of {list(USAGES)}")
    if settings["key"] not in CURVES:
        raise CertificateError("C19", f"{where}.key: expected one of {list(CURVES)}")
    backdate = _seconds(settings["backdate"], f"{where}.backdate")
    return Profile(settings["key"], lifetime, backdate, tuple(usages))


def _seconds(value: object, where: str) -> float:
    found = re.fullmatch(r"(\d{1,4})([mhd])", str(value))
    if not found:
        raise CertificateError("C19", f"{where}: expected a duration such as 10m or 30d")
    return int(found[1]) * _UNITS[found[2]]

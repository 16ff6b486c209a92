"""Which addresses of the network a server may be sent to by somebody else's URI: public ones, and those it was told."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an address of IPv4
#: Not public, whatever is registered, or unknown to the `ipaddress` of some versions of Python.
_REFUSED = (
    IPv4Network("192.0.0.0/24"),  # of protocols; a cloud's metadata among them
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("168.63.129.16/32"),  # Azure's own, of metadata and configuration, within its virtual machines
    IPv6Network("::/96"),  # IPv4 in disguise
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of a site's own
    IPv6Network("2001::/23"),  # of protocols; Teredo among them
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),  # documentation
    IPv6Network("5f00::/16"),  # segment routing
    IPv6Network("fec0::/10"),  # site-local
)


def is_allowed(address: str, *, private_networks: Sequence[Network]) -> bool:
    """Whether a connection may be made.

    Args:
        address: As a resolver gives it.
        private_networks: Networks that are allowed although they are not public.
    """
    try:
        given = ip_address(address)
    except ValueError:
        return False
    if isinstance(given, IPv6Address) and given.scope_id is not None:
        return False  # of one link only
    met = _met(given)
    if any(candidate in network for candidate in {given, met} for network in private_networks):
        return True
    return _is_public(met)


def _met(address: Address) -> Address:
    """Who answers at the address: one of IPv4, where it only wraps that."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(address.packed[-4:])
    return address


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_link_local
        and not any(address in network for network in _REFUSED)
    )

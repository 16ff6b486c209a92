"""Which addresses a stranger's URI may lead the server to."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from dmesr_server.pictures.addresses import is_allowed

PUBLIC = ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8", "64:ff9b::808:808"]
REFUSED = {
    "loopback": ["127.0.0.1", "127.8.8.8", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1"],
    "link-local": ["169.254.1.1", "fe80::1", "fe80::1%eth0"],
    "metadata": ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "broadcast and reserved": ["255.255.255.255", "240.0.0.1"],
    "documentation and tests": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1", "3fff::1"],
    "IPv4 mapped into IPv6": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:7f00:1"],
    "IPv4 in IPv6 otherwise": ["::127.0.0.1", "::a00:1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe"],
    "NAT64 of one's own": ["64:ff9b:1::808:808"],
    "6to4": ["2002:7f00:1::", "2002:a9fe:a9fe::1", "192.88.99.1"],
    "Teredo": ["2001:0:7f00:1::1"],
    "site-local": ["fec0::1"],
    "no address": ["", "localhost", "127.1", "0x7f000001", "2130706433", "127.0.0.1\0", "[::1]"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str):
    assert is_allowed(address, private_networks=())


@pytest.mark.parametrize(("kind", "address"), [(kind, one) for kind, several in REFUSED.items() for one in several])
def test_all_others_are_not(kind: str, address: str):
    assert not is_allowed(address, private_networks=()), kind


def test_a_network_that_was_named_is_allowed_and_no_other():
    networks = (ip_network("10.1.0.0/16"), ip_network("fd12::/16"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "8.8.8.8"):
        assert is_allowed(address, private_networks=networks), address
    for address in ("10.2.0.1", "127.0.0.1", "::ffff:10.2.0.1", "fd13::1", "169.254.169.254"):
        assert not is_allowed(address, private_networks=networks), address

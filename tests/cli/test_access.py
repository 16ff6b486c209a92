"""`dmesr-cli tokens` and `dmesr-cli audit`."""

from __future__ import annotations

from collections.abc import Callable

import dmesr

from .calls import Called

Cli = Callable[..., Called]


def test_a_token_from_its_making_to_its_end(cli: Cli, catalog: dmesr.Client):
    name = f"shop-{catalog.catalog_name}"
    made = cli("tokens", "create", name, "--scope", "read", "--for", catalog.catalog_name, "--expires", "90d")
    assert made.code == 0
    (line,) = made.out.splitlines()  # the token alone, for a script to take
    assert line.startswith("dmesr_")
    token_id = line.split("_")[1]
    assert "cannot be shown again" in made.err
    assert "this server asks for no token" in made.err
    listed = cli("tokens", "list")
    assert (name in listed.out, token_id in listed.out, line in listed.out) == (True, True, False)
    revoked = cli("tokens", "revoke", token_id, "--json")
    assert revoked.json["revoked_by"] == "anonymous"
    assert token_id not in cli("tokens", "list").out
    assert token_id in cli("tokens", "list", "--ended").out

    told = cli("audit", "list", "--method", "RevokeToken", "--since", "1d").out
    assert token_id in told
    assert line not in told
    newest = cli("audit", "list", "--json", "--limit", "2").json
    assert [one["method"] for one in newest] == ["AdminService/RevokeToken", "AdminService/CreateToken"]
    assert cli("audit", "list", "--about", catalog.catalog_name, "--json").json[0]["method"].endswith("CreateCatalog")
    assert cli("audit", "list", "--since", "2999-01-01", "--json").json == []


def test_json_holds_the_token(cli: Cli):
    made = cli("tokens", "create", "robot", "--scope", "admin", "--all-catalogs", "--json").json
    assert made["bearer_token"].split("_")[1] == made["token"]["token_id"]
    assert (made["token"]["scope"], made["token"]["catalogs"]) == ("ADMIN", None)


def test_wrong_calls_are_one_line(cli: Cli):
    for arguments, said in (
        (("tokens", "create", "a", "--scope", "read"), "--for"),
        (("tokens", "create", "a", "--scope", "read", "--for", "x", "--all-catalogs"), "--for"),
        (("tokens", "create", "a", "--scope", "owner", "--all-catalogs"), "expected read, write or admin"),
        (("tokens", "create", "a", "--scope", "read", "--for", "absent"), "CATALOG_NOT_FOUND"),
        (("tokens", "create", "a", "--scope", "read", "--all-catalogs", "--expires", "soon"), "no span of time"),
        (("tokens", "revoke", "absent"), "TOKEN_NOT_FOUND"),
        (("audit", "list", "--since", "yesterday"), "no span of time"),
        (("server", "info", "--cert", "absent.pem"), "absent.pem"),
    ):
        called = cli(*arguments)
        assert called.code in (1, 2)
        assert called.out == ""
        (line,) = called.err.splitlines()
        assert said in line

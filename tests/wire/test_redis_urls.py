"""A REDIS_URL is read whole: what is wrong in it is said, nothing of it is passed over."""

from __future__ import annotations

import pytest

from shared.errors import BadSetting
from shared.redis_urls import RedisUrl
from shared.settings import Settings
from shared.wire.client import connect, public_url

HOST = (("h", 6379),)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", RedisUrl(HOST)),
        ("redis://", RedisUrl((("localhost", 6379),))),
        ("redis://h:7000/", RedisUrl((("h", 7000),))),
        ("redis://[::1]:7000/3", RedisUrl((("::1", 7000),), options={"db": 3})),
        ("redis://:p%40s%23@h", RedisUrl(HOST, options={"password": "p@s#"})),
        ("redis://u:p@h?db=2", RedisUrl(HOST, options={"username": "u", "password": "p", "db": 2})),
        ("redis://h/2?db=2&client_name=f", RedisUrl(HOST, options={"db": 2, "client_name": "f"})),
        ("unix:///run/v.sock?db=1", RedisUrl(path="/run/v.sock", options={"db": 1})),
        ("unix://u:p@/v%20k", RedisUrl(path="/v k", options={"username": "u", "password": "p"})),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no",
            RedisUrl(HOST, tls=True,
                     options={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}),
        ),
        (
            "redis+sentinel://:p@a,b:7001/mymaster/4?sentinel_password=q",
            RedisUrl((("a", 26379), ("b", 7001)), service="mymaster",
                     options={"password": "p", "db": 4}, of_sentinels={"password": "q"}),
        ),
        ("rediss+sentinel://a/m", RedisUrl((("a", 26379),), service="m", tls=True)),
        (
            "redis+cluster://u:p@a,b:7001",
            RedisUrl((("a", 6379), ("b", 7001)), cluster=True,
                     options={"username": "u", "password": "p"}),
        ),
        ("rediss+cluster://a/0", RedisUrl((("a", 6379),), cluster=True, tls=True)),
    ],
)  # fmt: skip
def test_a_url_is_read(url: str, expected: RedisUrl) -> None:
    assert RedisUrl.of(url) == expected
    assert Settings.from_env({"REDIS_URL": url, "FERRY_JOBS": "0"}).redis_url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:6379", "must start with redis://"),
        ("http://h", "must start with redis://"),
        ("redis:/h", "must start with redis://"),
        ("redis://h:port", "the port 'port' must be a number from 1 to 65535"),
        ("redis://h:", "the port '' must be"),
        ("redis://h:0", "the port '0' must be"),
        ("redis://h:65536", "the port '65536' must be"),
        ("redis://h:6379:1", "the port '6379:1' must be"),
        ("redis://a,b:6379x", "the port '6379x' must be"),
        ("redis://h h", "is no host"),
        ("redis://h/xyz", "the database 'xyz' must be a number"),
        ("redis://h/-1", "the database '-1' must be a number"),
        ("redis://h/0/1", "the database '0/1' must be a number"),
        ("redis://h/1?db=2", "names two databases, /1 and ?db=2"),
        ("redis://h?db=x", "the option db='x' must be a whole number"),
        ("redis://h?database=1", "the option 'database' must be one of db"),
        ("redis://h?socket_timeout=1", "the option 'socket_timeout' must be one of"),
        ("redis://h?decode_responses=1", "the option 'decode_responses' must be one of"),
        ("redis://h?ssl_ca_certs=x", "ssl_ca_certs needs TLS: begin with rediss"),
        ("rediss://h?ssl_cert_reqs=maybe", "must be none, optional or required"),
        ("rediss://h?ssl_check_hostname=maybe", "must be true or false"),
        ("redis://:a#b@h", "must have no '#'"),
        ("unix://run/v.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("redis+sentinel://a:26379", "must name the service"),
        ("redis+sentinel://a:26379/m/x", "the database 'x' must be a number"),
        ("redis+sentinel://a:1,b:c/m", "the port 'c' must be"),
        ("redis+cluster://a:1,b:c", "the port 'c' must be"),
        ("redis+cluster://a/1", "must name no database"),
        ("redis+cluster://a?db=1", "must name no database"),
        ("redis://h?sentinel_password=x", "the option 'sentinel_password' must be one of"),
    ],
)
def test_what_is_wrong_is_said(url: str, why: str) -> None:
    with pytest.raises(BadSetting, match="REDIS_URL=") as raised:
        Settings.from_env({"REDIS_URL": url})
    assert why in str(raised.value)


def test_messages_hold_no_password() -> None:
    with pytest.raises(BadSetting, match=r"REDIS_URL='redis://\.\.\.@h:x': the port 'x' must be"):
        Settings.from_env({"REDIS_URL": "redis://user:pa@ss@h:x"})
    assert public_url("redis+sentinel://u:p@a:1,b:2/m") == "redis+sentinel://a:1,b:2/m"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://h?ssl_cert_reqs=none",
        "unix:///v",
        "redis+sentinel://a,b/m",
        "rediss+sentinel://a/m?ssl_ca_certs=/c",
    ],
)
def test_a_client_is_made_without_a_connection(url: str) -> None:
    client = connect(url)

    made = client.connection_pool.make_connection()
    assert not made.is_connected if hasattr(made, "is_connected") else made._sock is None


@pytest.mark.parametrize("prefix", ["ferry", "{ferry}"])
def test_in_a_cluster_every_key_begins_with_the_prefix_in_braces(prefix: str) -> None:
    environ = {"REDIS_URL": "redis+cluster://a", "FERRY_KEY_PREFIX": prefix, "FERRY_JOBS": "0"}

    assert Settings.from_env(environ).key_prefix == "{ferry}"
    assert Settings.from_env(environ | {"REDIS_URL": "redis://a"}).key_prefix == prefix


def test_a_cluster_is_refused_where_jobs_are_to_run() -> None:
    with pytest.raises(BadSetting, match="set FERRY_JOBS=0, or name another Redis"):
        Settings.from_env({"REDIS_URL": "redis+cluster://a"})


@pytest.mark.parametrize("prefix", ["{ferry", "ferry}", "{}", "{a}{b}", "a b", "a:b"])
def test_a_prefix_is_one_word(prefix: str) -> None:
    with pytest.raises(BadSetting, match="without braces, colons or spaces"):
        Settings.from_env({"FERRY_KEY_PREFIX": prefix})

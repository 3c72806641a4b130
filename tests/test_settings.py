"""What a start makes of flags, variables, the file and the defaults."""

from collections.abc import Mapping

import pytest

from waypost.settings import (
    DAY_MS,
    DEV_DEFAULTS,
    MB,
    MINUTE_MS,
    QUOTA_CAPS,
    SETTINGS,
    Settings,
    SettingsError,
    parse,
    read,
)


def parsed(
    environ: Mapping[str, str] | None = None, file: str | None = None, **flags: str
) -> Settings:
    return parse(environ=environ or {}, file_text=file, flags=flags)


def fault_of(
    environ: Mapping[str, str] | None = None, file: str | None = None, **flags: str
) -> str:
    with pytest.raises(SettingsError) as caught:
        parsed(environ, file, **flags)
    return str(caught.value)


def test_nothing_said_gives_the_promised_defaults():
    settings = parsed()

    assert (settings.retries_default, settings.retries_max) == (3, 100)
    assert settings.body_bytes_max == 10 * MB
    assert settings.delay_ms_max == 365 * DAY_MS
    assert (settings.timeout_ms_default, settings.timeout_ms_max) == (
        15 * MINUTE_MS,
        120 * MINUTE_MS,
    )
    assert (settings.log_retention_ms, settings.dead_letter_retention_ms) == (
        14 * DAY_MS,
        30 * DAY_MS,
    )


def test_a_flag_wins_over_a_variable_that_wins_over_the_file_that_wins_over_the_default():
    file = "retries_max = 10\nlog_level = 'error'\nlisten_port = 1"
    environ = {"WAYPOST_RETRIES_MAX": "20", "WAYPOST_LISTEN_PORT": "2"}

    settings = parsed(environ, file, listen_port="3")

    assert (settings.listen_port, settings.retries_max, settings.log_level) == (3, 20, "error")


def test_an_empty_variable_counts_as_absent():
    assert parsed({"WAYPOST_LISTEN_PORT": ""}, "listen_port = 1").listen_port == 1


def test_other_variables_are_none_of_our_business():
    assert parsed({"PATH": "/bin", "QSTASH_TOKEN": "x"}) == parsed()


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [("5000", 5_000), ("90s", 90_000), ("1h30m", 5_400_000), ("1d", 86_400_000)],
)
def test_a_duration_is_a_number_of_milliseconds_or_says_its_unit(text: str, expected_ms: int):
    assert parsed(timeout_ms_default=text, timeout_ms_max="1d").timeout_ms_default == expected_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5000", 5_000), ("64KB", 64_000), ("64 KB", 64_000), ("1MiB", 1_048_576), ("0", 0)],
)
def test_a_size_is_a_number_of_bytes_or_says_its_unit(text: str, expected: int):
    assert parsed(body_bytes_max=text).body_bytes_max == expected


def test_the_file_may_hold_numbers_texts_and_lists():
    settings = parsed(
        file="retries_max = 7\nbody_bytes_max = '2MB'\nbackoff_exponent = 1.5\n"
        "egress_allow = ['10.0.0.0/8', 'fd00::/8']"
    )

    assert (settings.retries_max, settings.body_bytes_max) == (7, 2 * MB)
    assert settings.backoff_exponent == 1.5
    assert settings.egress_allow == ("10.0.0.0/8", "fd00::/8")
    assert parsed(egress_allow="10.0.0.0/8, fd00::/8").egress_allow == settings.egress_allow


@pytest.mark.parametrize(
    ("environ", "file", "says"),
    [
        ({"WAYPOST_RETRY_MAX": "3"}, None, "WAYPOST_RETRIES_MAX meant"),
        ({"WAYPOST_SPEED": "3"}, None, "no setting WAYPOST_SPEED"),
        ({}, "retry_max = 3", "no setting retry_max (in the file); is retries_max meant"),
        ({}, "[retries]\nmax = 3", "no setting retries (in the file)"),
        ({}, "retries_max = {a = 3}", "retries_max in the file is neither"),
        ({}, "retries_max = true", "retries_max in the file is neither"),
        ({}, "retries_max", "not TOML"),
    ],
)
def test_what_is_unknown_stops_the_start(environ: dict[str, str], file: str | None, says: str):
    assert says in fault_of(environ, file)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("retries_max", "many", "is not a whole number"),
        ("retries_max", "-1", "is under 0"),
        ("retries_max", "1001", "is over 1000"),
        ("listen_port", "70000", "is over 65535"),
        ("listen_host", "localhost", "is not an address"),
        ("timeout_ms_max", "2 hours", "not a duration"),
        ("timeout_ms_max", "10", "is under 1s"),
        ("drain_ms", "2h", "is over 1h"),
        ("body_bytes_max", "10mb", "is not a size"),
        ("body_bytes_max", "1GB", "is over 500MB"),
        ("backoff_exponent", "e", "is not a number"),
        ("log_level", "loud", "is not one of debug, info, warning, error"),
        ("quota", "pro", "is not one of"),
        ("egress_allow", "10.0.0.1/8", "is not a network"),
        ("nameservers", "dns.example", "is not an address"),
        ("database", "mysql://db/x", "is a mysql database; there are sqlite:///path and post"),
        ("database", "postgresql://db", "is not of the form postgresql://user:password@host"),
        ("database", "postgres://db/", "is not of the form postgresql://user:password@host"),
        ("database_connections_max", "1", "is under 2"),
        ("lease_ms", "999", "is under 1s"),
        ("node_name", "my node", "may hold up to 100 printable ASCII characters"),
        ("database", "waypost.db", "is not of the form sqlite:///path"),
        ("database", "sqlite://waypost.db", "is not of the form sqlite:///path"),
        ("ca_file", "/no/such/file.pem", "is not a file"),
        ("egress_policy", "/no/such/policy.toml", "is not a file"),
        ("region", "a b", "may hold letters"),
    ],
)
def test_what_cannot_be_read_or_is_out_of_bounds_stops_the_start(name: str, text: str, says: str):
    fault = fault_of(**{name: text})

    assert says in fault
    assert f"--{name.replace('_', '-')} = {text!r}" in fault


@pytest.mark.parametrize(
    "text", ["user:hush@proxy:3128", "https://user:hush@proxy:3128", "http://user:hush", "hush"]
)
def test_a_secret_that_cannot_be_read_is_not_quoted(text: str):
    fault = fault_of(egress_proxy=text)

    assert fault.startswith("--egress-proxy is not of the form http://host:port")
    assert "hush" not in fault


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://waypost:hush@db/x y",
        "postgresql://waypost:hu/hush@db/x",
        "postgresql://waypost:hush@hush@db/x",
        "mysql://waypost:hush@db/x",
        "postgresql://db/x y?user=waypost&password=hush&sslpassword=hush",
        "waypost:hush@db/x?password=hush",
    ],
)
def test_no_password_is_quoted_of_a_database_that_cannot_be_read(url: str):
    assert "hush" not in fault_of(database=url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://db/x", "postgresql://db/x"),
        ("postgres://waypost@db:1,[::1]:2/x", "postgres://waypost@db:1,[::1]:2/x"),
        ("postgresql://waypost:hu:sh%40@db/x", "postgresql://waypost@db/x"),
        (
            "postgresql://waypost:hush@/x?host=/run&password=hush&sslmode=require",
            "postgresql://waypost@/x?host=/run&password=…&sslmode=require",
        ),
        ("sqlite:///a@b:c.db", "sqlite:///a@b:c.db"),
    ],
)
def test_a_database_is_shown_without_its_password(url: str, shown: str):
    settings = parsed(database=url)

    assert settings.database == url
    assert settings.database_shown == settings.redacted()["database"] == shown


def test_a_database_on_a_server_has_no_file():
    settings = parsed(database="postgresql://db/x")

    assert settings.database_is_postgres
    assert settings.database_path is None


def test_a_secret_is_not_shown():
    settings = parsed(egress_proxy="http://user:hush@proxy:3128")

    assert settings.redacted()["egress_proxy"] == "…"
    assert "hush" not in str(settings.redacted())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"retries_default": "9", "retries_max": "8"}, "retries_default = 9 is over retries_max"),
        ({"timeout_ms_default": "2h", "timeout_ms_max": "1h"}, "timeout_ms_default = 2h is over"),
        ({"in_flight_host_max": "9", "in_flight_max": "8"}, "in_flight_host_max = 9 is over"),
        ({"receive_bytes_max": "1MB"}, "body_bytes_max = 10MB is over receive_bytes_max = 1MB"),
        ({"batch_bytes_max": "300MB"}, "300MB is over receive_bytes_max = 256MB: the largest ba"),
        ({"in_flight_bytes_max": "1MB"}, "body_bytes_max = 10MB is over in_flight_bytes_max"),
        ({"store_bytes_max": "1MB"}, "the store could not hold one message"),
        ({"database": "sqlite:///:memory:", "store_bytes_max": "1GB"}, "database in memory"),
    ],
)
def test_what_contradicts_itself_stops_the_start(flags: dict[str, str], says: str):
    assert says in fault_of(**flags)


def test_every_fault_is_told_at_once():
    fault = fault_of({"WAYPOST_SPEED": "1"}, retries_max="x", listen_port="y")

    assert all(name in fault for name in ("WAYPOST_SPEED", "--retries-max", "--listen-port"))


def test_a_quota_sets_the_caps_of_the_hosted_service():
    settings = parsed(quota="payg")

    assert settings.retries_max == 5
    assert settings.body_bytes_max == 1 * MB
    assert settings.timeout_ms_default == settings.timeout_ms_max == 120 * MINUTE_MS


def test_a_quota_may_be_undercut_and_not_overstepped():
    assert parsed({"WAYPOST_RETRIES_MAX": "4"}, quota="payg").retries_max == 4
    assert "WAYPOST_RETRIES_MAX is over what quota payg allows (5)" in fault_of(
        {"WAYPOST_RETRIES_MAX": "6"}, quota="payg"
    )


def test_quota_caps_and_dev_defaults_name_settings():
    names = {setting.name for setting in SETTINGS}

    assert names.issuperset(DEV_DEFAULTS)
    assert names.issuperset(name for caps in QUOTA_CAPS.values() for name in caps)


def test_dev_defaults_replace_the_defaults_and_nothing_else():
    settings = parse(
        environ={"WAYPOST_LOG_LEVEL": "info"}, file_text=None, flags={}, defaults=DEV_DEFAULTS
    )

    assert str(settings.database_path) == ".waypost/dev.db"
    assert settings.log_level == "info"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///here.db", "here.db"),
        ("sqlite:////srv/there.db", "/srv/there.db"),
        ("sqlite:///:memory:", None),
    ],
)
def test_a_database_url_has_four_slashes_for_an_absolute_path(url: str, path: str | None):
    found = parsed(database=url).database_path

    assert (found and str(found)) == path


def test_the_file_is_named_by_a_flag_or_else_by_a_variable(tmp_path):
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text("retries_max = 11")
    other.write_text("retries_max = 12")
    environ = {"WAYPOST_CONFIG": str(other)}

    assert read(environ=environ, config=None, flags={}).retries_max == 12
    assert read(environ=environ, config=str(one), flags={}).retries_max == 11


def test_a_file_that_is_no_toml_is_named(tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("retries_max =")

    with pytest.raises(SettingsError, match=r"the settings file \S*wrong\.toml is not TOML: "):
        read(environ={"WAYPOST_CONFIG": str(wrong)}, config=None, flags={})


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read"):
        read(environ={}, config=str(tmp_path / "none.toml"), flags={})


def test_every_setting_can_be_shown_and_what_is_shown_can_be_read_again():
    settings = parsed(quota="payg", egress_allow="10.0.0.0/8,fd00::/8", database="sqlite:///a.db")

    assert parsed(**settings.redacted()) == settings


def test_the_unit_of_a_number_is_in_its_name():
    for setting in SETTINGS:
        assert ("_ms" in setting.name) == (setting.kind.name == "duration"), setting.name
        assert ("_bytes" in setting.name) == (setting.kind.name == "size"), setting.name


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]:53"])
def test_a_name_server_may_have_a_port(server: str) -> None:
    assert parse(environ={}, file_text=None, flags={"nameservers": server}).nameservers == (server,)


@pytest.mark.parametrize("server", ["dns.example", "127.0.0.1:0", "127.0.0.1:99999", "[::1]:x"])
def test_a_name_server_is_an_address(server: str) -> None:
    with pytest.raises(SettingsError, match="nameservers"):
        parse(environ={}, file_text=None, flags={"nameservers": server})


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("api.openai.com/v1", "endpoint has invalid scheme"),
        ("https://me:secret@llm.example/v1", "may hold neither a query nor a user"),
        ("https://llm.example/v1?key=secret", "may hold neither a query nor a user"),
    ],
)
def test_where_the_llm_is_must_be_a_plain_url(url: str, says: str) -> None:
    assert says in fault_of(llm_base_url=url)


def test_the_key_of_the_llm_is_shown_nowhere() -> None:
    settings = parsed(llm_base_url="https://llm.example/v1", llm_api_key="sk-operator")

    assert settings.llm_api_key == "sk-operator"
    assert "sk-operator" not in str(settings.redacted())
    assert "sk operator" not in fault_of(llm_base_url="https://a.b/v1", llm_api_key="sk operator")
    assert "nowhere to send it" in fault_of(llm_api_key="sk-operator")

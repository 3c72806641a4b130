"""The home of the settings: each declared once, as data, in `Settings`.

From that one declaration follow the flags, the `WAYPOST_*` variables, the keys
of the file, the checks and `docs/settings.md`.  A flag wins over a variable, a
variable over the file, the file over the default.

    timeout_ms_max      the name: the unit and the bound come last
    --timeout-ms-max    as a flag
    WAYPOST_TIMEOUT_MS_MAX, timeout_ms_max = "2h"

A value is a plain number in the name's unit, or says its own: `1h30m`, `10MB`.
Only assembly and the command line see `Settings`; what they build is handed
plain values.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Struct, structs

from waypost.domain.destination import checked_url
from waypost.domain.durations import parse_duration
from waypost.domain.errors import Invalid
from waypost.wire.proxy import Proxy

PREFIX = "WAYPOST_"
POSTGRES_SCHEMES = ("postgresql", "postgres")
CONFIG_VARIABLE = "WAYPOST_CONFIG"
"""Names the file, and so cannot be in it."""

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

KB = 1_000
MB = 1_000 * KB
GB = 1_000 * MB

DURATION_UNITS = {"ms": 1, "s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
SIZE_UNITS = {
    "B": 1, "KB": KB, "MB": MB, "GB": GB, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip


class SettingsError(Exception):
    """Why the start stops: every fault found, each naming its setting and where it came from."""

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("; ".join(faults))


class Kind(Struct, frozen=True):
    """How the text of a setting is read and shown.  `read` raises ValueError, saying why."""

    name: str
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str


class Is(Struct, frozen=True, kw_only=True):
    """Marks an attribute of `Settings`: its kind, its bounds and what it is for."""

    kind: Kind
    help: str
    minimum: float | None = None
    maximum: float | None = None
    secret: bool = False


class Setting(Struct, frozen=True, kw_only=True):
    """One row of the table of settings."""

    name: str
    kind: Kind
    help: str
    default: Any
    minimum: float | None
    maximum: float | None
    secret: bool

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _read_count(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("is not a whole number")
    return int(text)


def _read_ratio(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("is not a number")
    return float(text)


def _read_duration(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,15}", text):
        return int(text)
    try:
        return parse_duration(text)
    except Invalid as problem:
        raise ValueError(f"is {problem}") from None


def _read_size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15})\s*([A-Za-z]*)", text)
    if found is None or found[2] not in ("", *SIZE_UNITS):
        units = ", ".join(SIZE_UNITS)
        raise ValueError(f"is not a size; write a whole number of bytes, or one with {units}")
    return int(found[1]) * SIZE_UNITS.get(found[2], 1)


def _show_in(units: Mapping[str, int]) -> Callable[[int], str]:
    """Shows a number in the largest unit that leaves no rest."""

    def show(value: int) -> str:
        size, unit = max((size, unit) for unit, size in units.items() if value % size == 0)
        return f"{value // size}{unit}" if value else "0"

    return show


def _one_of(*choices: str) -> Kind:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError("is not one of " + ", ".join(choice or '""' for choice in choices))
        return text

    return Kind(" or ".join(f"`{choice}`" for choice in choices if choice), read)


def _list_of(name: str, read_one: Callable[[str], str]) -> Kind:
    def read(text: str) -> tuple[str, ...]:
        return tuple(read_one(item.strip()) for item in text.split(",") if item.strip())

    return Kind(f"list of {name}", read, ", ".join)


def _read_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"is not a network: {error}") from None


def _read_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("is not an address, such as 127.0.0.1") from None


def _read_nameserver(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in host or host.endswith("]")):
        if not 0 < int(port) < 65_536:
            raise ValueError("has a port that is none")
        _read_address(host.strip("[]"))
        return text
    return _read_address(text)


_PASSWORD = re.compile(r"(?<=password=)[^&]*", re.IGNORECASE)

_POSTGRES = re.compile(r"postgres(?:ql)?://(?:[^@/?#\s]*@)?[^@/?#\s]*/[^/?#\s]+(?:\?[^#\s]*)?")


def _quoted(text: str) -> str:
    """A value as it may be quoted: what stands before an `@` may be a password."""
    before, at, rest = text.rpartition("@")
    scheme, separator, _ = before.partition("://")
    shown = f"{scheme}://…@{rest}" if separator else f"…@{rest}" if at else text
    return _PASSWORD.sub("…", shown)


def _read_database(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if scheme in POSTGRES_SCHEMES:
        if not _POSTGRES.fullmatch(text):
            raise ValueError(
                "is not of the form postgresql://user:password@host:port/database (percent-encode "
                "what is special in a name or password)"
            )
    elif scheme != "sqlite" and separator:
        raise ValueError(
            f"is a {scheme} database; there are sqlite:///path and postgresql://host/database"
        )
    elif not text.startswith("sqlite:///") or text == "sqlite:///":
        raise ValueError("is not of the form sqlite:///path (four slashes for an absolute path)")
    return text


def _show_database(text: str) -> str:
    """A database without its password: who reads it again must have that from elsewhere."""
    shown = re.sub(r"^(postgres(?:ql)?://[^:@/?#]*):[^@/?#]*@", r"\1@", text)
    return _PASSWORD.sub("…", shown)


def _read_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError("is not a file")
    return text


def _read_proxy(text: str) -> str:
    Proxy(text)
    return text


def _read_region(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,40}", text):
        raise ValueError("may hold letters, digits and hyphens only")
    return text


def _read_base_url(text: str) -> str:
    try:
        url = checked_url(text.encode())
    except Invalid as problem:
        raise ValueError(str(problem).removeprefix("invalid destination url: ")) from None
    if "?" in url or "@" in url:
        raise ValueError("may hold neither a query nor a user; the key is a setting of its own")
    return url


def _read_node_name(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,100}", text):
        raise ValueError("may hold up to 100 printable ASCII characters, and no spaces")
    return text


def _read_key(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("may hold printable ASCII characters only, and no spaces")
    return text


COUNT = Kind("whole number", _read_count)
RATIO = Kind("number", _read_ratio)
DURATION = Kind("duration", _read_duration, _show_in(DURATION_UNITS))
SIZE = Kind("size", _read_size, _show_in(SIZE_UNITS))
ADDRESS = Kind("address", _read_address)
DATABASE = Kind("URL", _read_database, _show_database)
NODE_NAME = Kind("name", _read_node_name)
FILE = Kind("path", _read_file)
PROXY = Kind("URL", _read_proxy)
REGION = Kind("name", _read_region)
BASE_URL = Kind("URL", _read_base_url)
KEY = Kind("text", _read_key)
NETWORKS = _list_of("networks", _read_network)
NAMESERVERS = _list_of("addresses, with or without a port", _read_nameserver)
LEVEL = _one_of("debug", "info", "warning", "error")
FORMAT = _one_of("json", "text")
QUOTA = _one_of("", "payg")
MISFIRE = _one_of("none", "latest", "all")

MEMORY = "sqlite:///:memory:"


class Settings(Struct, frozen=True, kw_only=True):
    """What can be set, what it is when nobody sets it, and within which bounds."""

    database: Annotated[
        str,
        Is(
            kind=DATABASE,
            help="Where everything is kept: `sqlite:///relative.db`, `sqlite:////absolute.db`, "
            "`sqlite:///:memory:`, which keeps nothing, or "
            "`postgresql://user:password@host:port/database`, with libpq's parameters: `sslmode`, "
            "`sslrootcert`, `sslcert`, `sslkey`, `passfile`, `target_session_attrs` and kin. "
            "A password belongs in the variable or the file: others on the machine see flags. "
            "`serve` has no default.",
        ),
    ] = ""
    database_connections_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=2,
            maximum=1_000,
            help="PostgreSQL only: connections of this node to the database.",
        ),
    ] = 10
    database_statement_ms_max: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            maximum=HOUR_MS,
            help="PostgreSQL only: how long a statement may take before the database counts as "
            "away.",
        ),
    ] = 30 * SECOND_MS
    database_statements_cached: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=10_000,
            help="PostgreSQL only: prepared statements that a connection keeps; 0 behind a pooler "
            "that knows none, such as pgbouncer in transaction mode without "
            "`max_prepared_statements`.",
        ),
    ] = 256
    lease_ms: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            maximum=HOUR_MS,
            help="PostgreSQL only: how long a node lives of which nothing is heard. Then others "
            "take over what it had under way.",
        ),
    ] = 10 * SECOND_MS
    node_name: Annotated[
        str,
        Is(
            kind=NODE_NAME,
            help="PostgreSQL only: what `waypost nodes` calls this node. The host's name where it "
            "is empty.",
        ),
    ] = ""
    listen_host: Annotated[str, Is(kind=ADDRESS, help="The address to listen on.")] = "127.0.0.1"
    listen_port: Annotated[
        int, Is(kind=COUNT, minimum=0, maximum=65_535, help="The port; 0 takes a free one.")
    ] = 8080
    log_port: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=65_535,
            help="`waypost dev` only: where the console finds the logs; 0 takes the port after "
            "`listen_port`.",
        ),
    ] = 0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Is(kind=LEVEL, help="What is logged at all.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "text"], Is(kind=FORMAT, help="How the log on stderr is written.")
    ] = "json"
    body_bytes_max: Annotated[
        int,
        Is(kind=SIZE, minimum=0, maximum=500 * MB, help="The largest body of a message; 413 over."),
    ] = 10 * MB
    batch_bytes_max: Annotated[
        int,
        Is(
            kind=SIZE,
            minimum=0,
            maximum=500 * MB,
            help="The largest body of a batch, with all its messages; 413 over.",
        ),
    ] = 100 * MB
    batch_count_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=1,
            maximum=10_000,
            help="The most messages that a batch makes: they are accepted in one transaction, and "
            "meanwhile everybody else waits.",
        ),
    ] = 1_000
    head_bytes_max: Annotated[
        int,
        Is(
            kind=SIZE,
            minimum=1 * KB,
            maximum=1 * MB,
            help="The largest head of a request: its first line and header fields; 431 over.",
        ),
    ] = 64 * KB
    response_bytes_max: Annotated[
        int,
        Is(
            kind=SIZE,
            minimum=0,
            maximum=100 * MB,
            help="How much of a destination's answer is read and kept.",
        ),
    ] = 1 * MB
    retries_default: Annotated[
        int,
        Is(kind=COUNT, minimum=0, maximum=1_000, help="Retries where the publisher names none."),
    ] = 3
    retries_max: Annotated[
        int,
        Is(kind=COUNT, minimum=0, maximum=1_000, help="The most retries a publisher may ask for."),
    ] = 100
    backoff_exponent: Annotated[
        float,
        Is(
            kind=RATIO,
            minimum=0,
            maximum=10,
            help="x in the default wait before the n-th retry: min(86400, e ** (x * n)) seconds.",
        ),
    ] = 2.0
    delay_ms_max: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=0,
            maximum=3_650 * DAY_MS,
            help="How far ahead a publisher may put a delivery.",
        ),
    ] = 365 * DAY_MS
    misfire: Annotated[
        Literal["none", "latest", "all"],
        Is(
            kind=MISFIRE,
            help="Which firings of a schedule run that fell due while the server was down: those "
            "no later than `misfire_window_ms`, or the latest of them. See docs/schedules.md.",
        ),
    ] = "latest"
    misfire_window_ms: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=MINUTE_MS,
            maximum=DAY_MS,
            help="How late a firing of a schedule may be and still run.",
        ),
    ] = HOUR_MS
    timeout_ms_default: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            help="How long an attempt may take where the publisher does not say.",
        ),
    ] = 15 * MINUTE_MS
    timeout_ms_max: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            maximum=DAY_MS,
            help="The longest timeout a publisher may ask for.",
        ),
    ] = 2 * HOUR_MS
    label_count_max: Annotated[
        int, Is(kind=COUNT, minimum=0, maximum=1_000, help="The most labels of a message.")
    ] = 100
    flow_period_ms_max: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            maximum=365 * DAY_MS,
            help="The longest period of a flow-control rate.",
        ),
    ] = 7 * DAY_MS
    url_group_count_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=10_000,
            help="The most URL groups of a tenant; 412 over. One that is there can always be "
            "changed.",
        ),
    ] = 1_000
    endpoint_count_max: Annotated[
        int, Is(kind=COUNT, minimum=1, maximum=1_000, help="The most endpoints of a URL group.")
    ] = 100
    queue_count_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=1_000_000,
            help="The most queues of a tenant; 412 over. One that is there can always be changed.",
        ),
    ] = 10_000
    schedule_count_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=1_000_000,
            help="The most schedules of a tenant; 412 over.",
        ),
    ] = 10_000
    requests_per_second_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            maximum=1_000_000,
            help="Requests of a tenant within a second, publishing aside; 429 over; 0: no bound.",
        ),
    ] = 0
    messages_per_day_max: Annotated[
        int,
        Is(
            kind=COUNT,
            minimum=0,
            help="Messages that a tenant may publish within a day (UTC); 429 over; 0: no bound. "
            "Those of its schedules count: a run that is over fails. "
            "Counted in memory: a restart begins anew.",
        ),
    ] = 0
    quota: Annotated[
        Literal["", "payg"],
        Is(
            kind=QUOTA,
            help="A plan of the hosted service whose caps to set, for tests against them.",
        ),
    ] = ""
    log_retention_ms: Annotated[
        int, Is(kind=DURATION, minimum=MINUTE_MS, help="How long the log and messages are kept.")
    ] = 14 * DAY_MS
    dead_letter_retention_ms: Annotated[
        int, Is(kind=DURATION, minimum=MINUTE_MS, help="How long dead letters are kept.")
    ] = 30 * DAY_MS
    store_bytes_max: Annotated[
        int,
        Is(
            kind=SIZE,
            minimum=0,
            help="When the store grows over this, the oldest history goes early; 0: no bound.",
        ),
    ] = 0
    free_bytes_min: Annotated[
        int,
        Is(
            kind=SIZE,
            minimum=0,
            help="With less free space than this, publishes get 507 and deliveries go on. SQLite "
            "only: the disk of a PostgreSQL server is not ours to see.",
        ),
    ] = 128 * MB
    in_flight_max: Annotated[
        int, Is(kind=COUNT, minimum=1, maximum=100_000, help="Attempts under way at once, in all.")
    ] = 1_024
    in_flight_host_max: Annotated[
        int, Is(kind=COUNT, minimum=1, maximum=100_000, help="Attempts under way to one host.")
    ] = 64
    in_flight_bytes_max: Annotated[
        int, Is(kind=SIZE, minimum=1, help="Bodies of attempts under way, in memory.")
    ] = 256 * MB
    receive_bytes_max: Annotated[
        int, Is(kind=SIZE, minimum=1, help="Bodies of requests being received, in memory.")
    ] = 256 * MB
    connections_max: Annotated[
        int, Is(kind=COUNT, minimum=1, maximum=100_000, help="Connections of callers at once.")
    ] = 4_096
    drain_ms: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=0,
            maximum=HOUR_MS,
            help="How long attempts under way may go on after SIGTERM; what is left is released.",
        ),
    ] = 30 * SECOND_MS
    ready_age_ms_max: Annotated[
        int,
        Is(
            kind=DURATION,
            minimum=SECOND_MS,
            help="`/readyz` is red while a message that may go has been due for longer.",
        ),
    ] = 60 * SECOND_MS
    ca_file: Annotated[
        str,
        Is(kind=FILE, help="Certificates to trust in place of the system's, as PEM."),
    ] = ""
    nameservers: Annotated[
        tuple[str, ...], Is(kind=NAMESERVERS, help="Name servers to ask in place of the system's.")
    ] = ()
    egress_allow: Annotated[
        tuple[str, ...],
        Is(
            kind=NETWORKS,
            help="Private, loopback or otherwise reserved networks that may be delivered to.",
        ),
    ] = ()
    egress_policy: Annotated[
        str,
        Is(
            kind=FILE,
            help="A TOML file of rules on who may deliver where; see docs/egress.md.",
        ),
    ] = ""
    egress_proxy: Annotated[
        str,
        Is(
            kind=PROXY,
            secret=True,
            help="A forward proxy that all deliveries go through: `http://user:password@host:port`.",
        ),
    ] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        Is(kind=NETWORKS, help="Peers whose `X-Forwarded-For` names the caller."),
    ] = ()
    llm_base_url: Annotated[
        str,
        Is(
            kind=BASE_URL,
            help="Where `api/llm` is: a server with OpenAI's API, such as "
            "`https://api.openai.com/v1`. The egress rules do not apply to it.",
        ),
    ] = ""
    llm_api_key: Annotated[
        str,
        Is(
            kind=KEY,
            help="Sent to it as a bearer token, in place of what the publisher forwards.",
            secret=True,
        ),
    ] = ""
    region: Annotated[
        str, Is(kind=REGION, help="What deliveries and answers give as `Upstash-Region`.")
    ] = "EU-CENTRAL-1"

    @property
    def database_path(self) -> Path | None:
        """The database's file; None where it has none of its own."""
        assert self.database
        if self.database == MEMORY or self.database_is_postgres:
            return None
        return Path(self.database.removeprefix("sqlite:///"))

    @property
    def database_is_postgres(self) -> bool:
        return self.database.partition("://")[0] in POSTGRES_SCHEMES

    @property
    def database_shown(self) -> str:
        """The database's URL without a password."""
        return _show_database(self.database)

    def redacted(self) -> dict[str, str]:
        """Every setting as text, with nothing that must stay secret."""
        return {
            setting.name: "…" if setting.secret and value else setting.kind.show(value)
            for setting in SETTINGS
            for value in (getattr(self, setting.name),)
        }


def _table() -> tuple[Setting, ...]:
    defaults = {field.name: field.default for field in structs.fields(Settings)}
    hints = get_type_hints(Settings, include_extras=True)
    return tuple(
        Setting(
            name=name,
            kind=mark.kind,
            help=mark.help,
            default=default,
            minimum=mark.minimum,
            maximum=mark.maximum,
            secret=mark.secret,
        )
        for name, default in defaults.items()
        for mark in hints[name].__metadata__
    )


SETTINGS = _table()
"""Every setting there is, in the order of the documentation."""

BY_NAME = {setting.name: setting for setting in SETTINGS}

DEV_DEFAULTS: Mapping[str, Any] = {
    "database": "sqlite:///.waypost/dev.db",
    "log_format": "text",
    "log_level": "warning",
    "egress_allow": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
    "drain_ms": 2 * SECOND_MS,
}
"""The defaults that `waypost dev` replaces: receivers live on this machine, which it always
reaches, or beside it."""

QUOTA_CAPS: Mapping[str, Mapping[str, int]] = {
    "payg": {
        "body_bytes_max": 1 * MB,
        "retries_max": 5,
        "delay_ms_max": 365 * DAY_MS,
        "timeout_ms_default": 2 * HOUR_MS,
        "timeout_ms_max": 2 * HOUR_MS,
    },
}
"""What the plans of the hosted service allow (contract section 0.7)."""


def parse(
    *,
    environ: Mapping[str, str],
    file_text: str | None,
    flags: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
    file_name: str = "given",
) -> Settings:
    """Settings from all four sources.

    `environ` may hold anything; only what begins with `WAYPOST_` is read, and
    an empty variable counts as absent.  `file_text` is TOML, of the file that is
    called `file_name`.  `flags` has the names of settings, and text.  `defaults`
    replaces some of the defaults.

    Raises SettingsError with every fault there is.
    """
    faults: list[str] = []
    values: dict[str, Any] = dict(defaults or {})
    sources: dict[str, str] = {}
    for name, text, source in (
        *_from_file(file_text, file_name, faults),
        *_from_environ(environ, faults),
        *((name, text, BY_NAME[name].flag) for name, text in flags.items()),
    ):
        sources[name] = source
        try:
            values[name] = _value(BY_NAME[name], text)
        except ValueError as error:
            said = source if BY_NAME[name].secret else f"{source} = {_quoted(text)!r}"
            faults.append(f"{said} {error}")
    if faults:
        raise SettingsError(*faults)
    for name, cap in QUOTA_CAPS.get(values.get("quota", ""), {}).items():
        if name not in sources:
            values[name] = cap
        elif values[name] > cap:
            shown = BY_NAME[name].kind.show(cap)
            faults.append(f"{sources[name]} is over what quota {values['quota']} allows ({shown})")
    settings = Settings(**values)
    faults += _contradictions(settings)
    if faults:
        raise SettingsError(*faults)
    return settings


def read(
    *,
    environ: Mapping[str, str],
    config: str | None,
    flags: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """`parse`, with the text of the file that `config` or else WAYPOST_CONFIG names."""
    path = config or environ.get(CONFIG_VARIABLE)
    try:
        file_text = Path(path).read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from None
    return parse(
        environ=environ,
        file_text=file_text,
        flags=flags,
        defaults=defaults,
        file_name=path or "given",
    )


def _value(setting: Setting, text: str) -> Any:
    if not text:
        return setting.default
    value = setting.kind.read(text)
    if setting.minimum is not None and value < setting.minimum:
        raise ValueError(f"is under {_shown(setting, setting.minimum)}")
    if setting.maximum is not None and value > setting.maximum:
        raise ValueError(f"is over {_shown(setting, setting.maximum)}")
    return value


def _shown(setting: Setting, bound: float) -> str:
    return setting.kind.show(int(bound))


def _from_environ(environ: Mapping[str, str], faults: list[str]) -> Iterable[tuple[str, str, str]]:
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in BY_NAME or variable != variable.upper():
            faults.append(f"there is no setting {variable}{_meant(name, _variable)}")
        elif environ[variable]:
            yield name, environ[variable], variable


def _from_file(
    file_text: str | None, file_name: str, faults: list[str]
) -> Iterable[tuple[str, str, str]]:
    try:
        found = tomllib.loads(file_text or "")
    except tomllib.TOMLDecodeError as error:
        faults.append(f"the settings file {file_name} is not TOML: {error}")
        return
    for name, value in found.items():
        if name not in BY_NAME:
            faults.append(f"there is no setting {name} (in the file){_meant(name, str)}")
        elif isinstance(value, list):
            yield name, ",".join(map(str, value)), f"{name} in the file"
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield name, str(value), f"{name} in the file"
        else:
            faults.append(f"{name} in the file is neither text, a number nor a list")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _meant(name: str, spelled: Callable[[str], str]) -> str:
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    return f"; is {spelled(near[0])} meant?" if near else ""


def _contradictions(settings: Settings) -> Iterable[str]:
    """Pairs that cannot both hold, and why."""
    for small, large, why in (
        ("retries_default", "retries_max", "a publish that names no retries would be refused"),
        ("timeout_ms_default", "timeout_ms_max", "a publish without a timeout would be refused"),
        ("in_flight_host_max", "in_flight_max", "one host cannot have more than there is in all"),
        ("body_bytes_max", "receive_bytes_max", "the largest body could never be received"),
        ("batch_bytes_max", "receive_bytes_max", "the largest batch could never be received"),
        ("body_bytes_max", "in_flight_bytes_max", "the largest body could never be sent"),
        ("response_bytes_max", "in_flight_bytes_max", "one answer could fill the memory"),
    ):
        low, high = getattr(settings, small), getattr(settings, large)
        if low > high:
            show = BY_NAME[small].kind.show
            yield f"{small} = {show(low)} is over {large} = {show(high)}: {why}"
    if 0 < settings.store_bytes_max < settings.body_bytes_max:
        yield "store_bytes_max is under body_bytes_max: the store could not hold one message"
    if settings.llm_api_key and not settings.llm_base_url:
        yield "llm_api_key is set and llm_base_url is not: there is nowhere to send it"
    if settings.database == MEMORY and settings.store_bytes_max:
        yield "store_bytes_max cannot be kept by a database in memory"

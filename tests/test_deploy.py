"""What is in `deploy/`, and what docs/operations.md says of it, is so.

Checked with the programs at hand: nginx, systemd-analyze and helm, each where it is installed.
"""

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.databases import Databases, connected
from tests.support.lacking import LACKING
from tests.support.postgres import SHIPPED
from tests.support.program import (
    DEADLINE_S,
    DEV_TOKEN,
    Server,
    accepts_connections,
    eventually,
    free_port,
    running,
    waypost,
)
from waypost import __version__
from waypost.cli.faults import TRY_AGAIN, WRONG
from waypost.domain.ids import api_token
from waypost.settings import BY_NAME, SETTINGS, parse
from waypost.telemetry import EVENTS, metrics

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "waypost"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

VARIABLES = {setting.variable for setting in SETTINGS} | {"WAYPOST_CONFIG"}
DRAIN_S = BY_NAME["drain_ms"].default // 1_000

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where nginx is, which a plain user's PATH leaves out."""

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""What nginx has directories for."""

VALUES = {"remote_apply", "remote_write", "non_idempotent", "max_prepared_statements"}
"""What docs/operations.md names of PostgreSQL, nginx and pgbouncer that no table here has."""


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_DIRECTORIES}")
    if found is None:
        pytest.skip(f"{LACKING}{name}")
    return found


def run(*words: str | Path, **environ: str) -> str:
    """Run a program that must succeed; what it said."""
    ended = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def blocks(language: str, page: str = OPERATIONS) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*\}", "secret", text))
    return loaded


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile",
        "deploy/waypost.service",
        "deploy/node.conf",
        "docs/deployment.md",
        "docs/operations.md",
    ],
)
def test_what_is_set_is_a_setting(name: str):
    assert set(re.findall(r"WAYPOST_[A-Z_]+(?==)", (ROOT / name).read_text())) <= VARIABLES


# systemd


def test_the_unit_stays_down_for_what_does_not_mend_itself_and_for_nothing_else():
    unit = (DEPLOY / "waypost.service").read_text()

    assert re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE) == [f"{WRONG}"]
    assert re.findall(r"^StartLimitIntervalSec=(.*)$", unit, re.MULTILINE) == ["0"]
    assert TRY_AGAIN != WRONG
    assert "Restart" not in (DEPLOY / "node.conf").read_text()
    table = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \|$", DEPLOYMENT, re.MULTILINE)
    assert {(int(status), told.split()[0]) for status, _, told in table} == {
        (WRONG, "stays"),
        (TRY_AGAIN, "tries"),
    }


def test_no_command_of_ours_is_given_a_password():
    for page in PAGES:
        for block in blocks("sh", page.read_text()):
            assert 'database "$' not in block, page
            assert not re.search(r"waypost copy .*://\w+:\w+@", block), page


def test_the_unit_leaves_the_server_time_to_drain():
    unit = (DEPLOY / "waypost.service").read_text()
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)

    assert int(stop_s) > DRAIN_S


@pytest.mark.parametrize("unit", ["waypost.service", "waypost@8081.service"])
def test_systemd_accepts_the_unit_for_one_node_and_for_many(unit: str, tmp_path: Path):
    text = (DEPLOY / "waypost.service").read_text()
    text = text.replace("/opt/waypost/bin/waypost", shutil.which("true") or "")
    for name in ("waypost.service", "waypost@.service"):
        (tmp_path / name).write_text(text)
    drop_ins = tmp_path / "waypost@.service.d"
    drop_ins.mkdir()
    shutil.copy(DEPLOY / "node.conf", drop_ins)

    said = run(program("systemd-analyze"), "verify", unit, SYSTEMD_UNIT_PATH=f"{tmp_path}:")

    assert said == ""


# Compose


def test_the_nodes_of_compose_have_settings_that_are_read_without_fault():
    for node in ("node1", "node2"):
        read = parse(environ=compose()["services"][node]["environment"], file_text=None, flags={})

        assert read.database == "postgresql://waypost:secret@postgres/waypost"


def test_compose_leaves_the_nodes_time_to_drain_and_asks_whether_they_are_ready():
    for node in ("node1", "node2"):
        service = compose()["services"][node]

        assert seconds(service["stop_grace_period"]) > DRAIN_S
        assert "/readyz" in service["healthcheck"]["test"][-1]
        assert service["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_the_balancer_of_compose_knows_the_nodes_and_is_known_to_them():
    services = compose()["services"]
    addresses = {
        name: service["networks"]["default"]["ipv4_address"]
        for name, service in services.items()
        if "networks" in service
    }
    balancer = addresses.pop("balancer")

    known = re.findall(r"^\s+server (\S+):8080 ", (DEPLOY / "nginx.conf").read_text(), re.MULTILINE)
    assert known == list(addresses.values())
    for node in addresses:
        assert services[node]["environment"]["WAYPOST_TRUSTED_PROXIES"] == f"{balancer}/32"


# The balancer


@contextmanager
def balancing(text: str, directory: Path, **ports: int) -> Iterator[str]:
    """nginx with a configuration whose addresses are replaced; its URL."""
    nginx = program("nginx")
    port = free_port()
    paths = "".join(f"{name}_temp_path {directory / name};" for name in TEMPORARY)
    text = text.replace("http {", f"http {{ {paths}").replace(
        "listen 8080;", f"listen 127.0.0.1:{port};"
    )
    for address, to in ports.items():
        text = text.replace(address, f"127.0.0.1:{to}")
    config = directory / "nginx.conf"
    config.write_text(text)
    process = subprocess.Popen(
        [nginx, "-e", "stderr", "-p", directory, "-c", config,
         "-g", f"daemon off; pid {directory / 'pid'};"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: accepts_connections(url))
        yield url
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def publish(server: Server, balancer: str, *more: str, token: str = DEV_TOKEN) -> str:
    return run(
        program("curl"), "--silent", "--include", "--request", "POST", "--data", "x",
        "--header", f"Authorization: Bearer {token}", *more,
        f"{balancer}/v2/publish/https://127.0.0.1:1/a//b",
    )  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("dev", "--memory", "--port", "0", cwd=tmp_path_factory.mktemp("node")) as server:
        yield server


def port_of(node: Server) -> int:
    return int(node.url.rpartition(":")[2])


def test_the_balancer_passes_paths_on_as_they_are_and_over_a_node_that_is_gone(
    node: Server, tmp_path: Path
):
    text = (DEPLOY / "nginx.conf").read_text()
    ports = {"10.213.0.11:8080": free_port(), "10.213.0.12:8080": port_of(node)}
    with balancing(text, tmp_path, **ports) as url:
        for _ in range(4):
            said = publish(node, url)
            assert said.startswith("HTTP/1.1 200"), said

            [message_id] = re.findall(r"msg_\w+", said)
            status, body = node.call("GET", f"/v2/messages/{message_id}")
            assert (status, b"https://127.0.0.1:1/a//b" in body) == (200, True), body


def test_nobody_reads_the_metrics_through_the_balancer(node: Server, tmp_path: Path):
    text = (DEPLOY / "nginx.conf").read_text()
    with balancing(text, tmp_path, **{"10.213.0.11:8080": port_of(node)}) as url:
        assert (
            "403" in run(program("curl"), "--silent", "--include", f"{url}/metrics").split("\n")[0]
        )


def test_a_balancer_finds_the_cell_of_a_tenant_by_its_token(node: Server, tmp_path: Path):
    [routing] = blocks("nginx")
    cells = "upstream cell1 { server 127.0.0.1:1; } upstream cell2 { server node; }"
    text = "events {} http { merge_slashes off; access_log off; " + cells + routing + "}"
    text = text.replace("server {\n", "server { listen 8080; proxy_set_header Host $http_host;\n")
    with balancing(text, tmp_path, node=port_of(node)) as url:
        acme = publish(node, url, token=api_token("acme", "0" * 40))
        other = publish(node, url, token=api_token("acme2", "0" * 40))

    assert acme.startswith("HTTP/1.1 401"), acme  # the cell answers: it has no such token
    assert other.startswith("HTTP/1.1 502"), other


def prefix_of(tenant: str) -> str:
    """What the token of a tenant begins with, by the command that the page prints for acme."""
    [command] = [line for block in blocks("sh") for line in block.splitlines() if "UserID" in line]
    assert command.count(" acme ") == 1
    return run("sh", "-c", command.replace(" acme ", f" {tenant} ")).strip()


@pytest.mark.parametrize("tenant", ["a", "ac", "acm", "acme", "acme2", "Acme.Corp_1-x", "n" * 64])
def test_the_page_says_what_the_token_of_a_tenant_begins_with(tenant: str):
    prefix = prefix_of(tenant)

    assert api_token(tenant, "0" * 40).startswith(prefix)
    assert f'"{tenant}"' in base64.b64decode(prefix, validate=True).decode()
    assert re.escape(prefix) == prefix  # it stands in an expression
    for other in (f"{tenant}2", f"{tenant}-", tenant[:-1] or "b"):
        assert not api_token(other, "0" * 40).startswith(prefix)


def test_the_map_of_the_page_has_what_the_command_of_the_page_prints():
    assert f'"~^Bearer {prefix_of("acme")}"' in OPERATIONS


def test_the_proxy_of_one_server_is_the_balancer_of_many_but_for_addresses():
    [page] = blocks("nginx", DEPLOYMENT)
    deployed = (DEPLOY / "nginx.conf").read_text()
    [server] = re.findall(r"^    server \{\n.*?^    \}\n", deployed, re.MULTILINE | re.DOTALL)

    def lines(text: str) -> list[str]:
        own = ("listen ", "server_name ")
        squeezed = (" ".join(line.split()) for line in text.splitlines())
        return [line for line in squeezed if line and not line.startswith(own)]

    assert lines(page) == lines(server.replace("http://waypost;", "http://127.0.0.1:8080;"))


def test_the_proxy_of_the_page_passes_on_paths_as_they_are(node: Server, tmp_path: Path):
    [page] = blocks("nginx", DEPLOYMENT)
    text = "events {} http { access_log off; " + page.replace("listen 443 ssl;", "listen 8080;")
    with balancing(text + "}", tmp_path, **{"127.0.0.1:8080": port_of(node)}) as url:
        said = publish(node, url)

    assert said.startswith("HTTP/1.1 200"), said


# Helm


def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def names_of(tree: dict[str, Any], *above: str) -> set[str]:
    """Every value of a chart, by its path; what users name themselves is one value."""
    names = set()
    for name, value in tree.items():
        path = (*above, name)
        if isinstance(value, dict) and value and name not in ("settings", "resources"):
            names |= names_of(value, *path)
        else:
            names.add(".".join(path))
    return names


def test_the_templates_of_the_chart_use_all_its_values_and_no_other():
    used = set()
    for template in (CHART / "templates").iterdir():
        used |= set(re.findall(r"\.Values\.([\w.]+)", template.read_text()))

    assert used == names_of(values())


def test_the_settings_of_the_chart_are_settings_and_there_is_time_to_drain():
    assert set(values()["settings"]) <= set(BY_NAME)
    environ = {BY_NAME[name].variable: text for name, text in values()["settings"].items()}
    parse(environ=environ, file_text=None, flags={})
    assert values()["terminationGracePeriodSeconds"] > DRAIN_S + 5  # preStop
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_helm_accepts_the_chart_and_renders_what_its_values_say(tmp_path: Path):
    helm = program("helm")
    more = {
        "replicas": 3,
        "settings": {"log_level": "debug", "in_flight_max": "4096"},
        "secretSettings": [{"setting": "llm_api_key", "secret": "openai", "key": "key"}],
        "secretFiles": [{"name": "ca", "secret": "database-ca", "path": "/etc/waypost/ca"}],
    }
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    words = ("--values", tmp_path / "more.yaml")

    run(helm, "lint", "--strict", CHART, *words, HOME=str(tmp_path))
    said = run(helm, "template", "waypost", CHART, *words, HOME=str(tmp_path))

    made = {each["kind"]: each for each in yaml.safe_load_all(said)}
    assert set(made) == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = made["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    environ = {each["name"]: each.get("value") for each in container["env"]}
    labels = spec["template"]["metadata"]["labels"].items()
    assert spec["replicas"] == 3
    assert set(environ) <= VARIABLES
    assert environ["WAYPOST_IN_FLIGHT_MAX"] == "4096"
    assert environ["WAYPOST_READY_AGE_MS_MAX"] == "1h"
    assert environ["WAYPOST_DATABASE"] is environ["WAYPOST_LLM_API_KEY"] is None  # secrets
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["volumeMounts"][0]["mountPath"] == "/etc/waypost/ca"
    assert pod["enableServiceLinks"] is False
    for selector in (
        spec["selector"]["matchLabels"],
        made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels


# The page


def commands() -> set[tuple[str, ...]]:
    """The commands that our pages show: what follows `waypost`, as far as it is a name."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        code = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for part in (*code, *re.findall(r"`([^`\n]+)`", text)):
            for words in re.findall(
                r"(?:^|[(/\s])(?:waypost|node1) (?!waypost)([a-z]+)(?: ([a-z]+))?(?=[\s)]|$)", part
            ):
                found.add(words if words[0] in ("tenant", "token", "egress") else words[:1])
    return found


def test_every_command_that_a_page_shows_exists(tmp_path: Path):
    assert {("migrate",), ("nodes",), ("copy",), ("tenant", "create")} <= commands()
    for words in sorted(commands()):
        ended = waypost(*words, "--help", cwd=tmp_path)

        assert ended.returncode == 0, (words, ended.stderr)


def test_the_metrics_and_the_reasons_that_the_page_names_exist():
    named = set(re.findall(r"\bwaypost_[a-z_]+", OPERATIONS))
    known = {metric.name for metric in metrics()}
    known |= {f"{metric.name}_bucket" for metric in metrics() if metric.kind == "histogram"}
    assert named <= known

    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    reasons = re.findall(r"^\| `(th(?:e|is) [^`]+)` \|", OPERATIONS, re.MULTILINE)
    assert len(reasons) == 5
    for reason in reasons:
        for part in reason.split("…"):
            assert part.strip() in source, reason


async def test_the_statements_of_the_page_run_and_a_cell_that_is_split_keeps_its_tenants(
    databases: Callable[[str], Databases],
):
    *others, split = blocks("sql")
    with databases(SHIPPED).lending() as lend:
        async with connected(await lend()) as db:
            for block in others:
                transaction = db.transaction()
                await transaction.start()
                await db.execute(
                    re.sub(r"CREATE DATABASE .*", "", block).replace("ROLE waypost", "ROLE other")
                )
                await transaction.rollback()
            await db.execute(
                "INSERT INTO message VALUES ('acme', 'a', 1, '{}', NULL, NULL),"
                " ('stays', 'b', 2, '{}', NULL, NULL), ('stays', 'c', 3, '{}', 2, NULL);"
                "INSERT INTO body VALUES (1, 'a'), (2, 'b')"
            )

            await db.execute(split)

            messages = await db.fetch("SELECT id FROM message ORDER BY id")
            bodies = await db.fetch("SELECT number FROM body")
            with_tenants = await db.fetch(
                "SELECT relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
                " WHERE relkind IN ('r', 'p') AND NOT relispartition AND attname = 'tenant'"
                " AND relname NOT LIKE '%upkeep'"
            )
    assert [row[0] for row in messages] == ["b", "c"]
    assert [row[0] for row in bodies] == [2]
    deleted = set(re.findall(r"^DELETE FROM (\w+)", split, re.MULTILINE))
    assert deleted == {row[0] for row in with_tenants} | {"tenant", "body"}


async def test_the_names_that_the_page_gives_are_those_of_the_settings_and_the_database(
    databases: Callable[[str], Databases],
):
    with databases(SHIPPED).lending() as lend:
        async with connected(await lend()) as db:
            of_postgres = {row[0] for row in await db.fetch("SELECT name FROM pg_settings")}
            options = {
                row[0]: row[1] or []
                for row in await db.fetch(
                    "SELECT relname, reloptions FROM pg_class WHERE relkind IN ('r', 'p')"
                    " AND NOT relispartition AND relnamespace = 'public'::regnamespace"
                )
            }

    tuned = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d*) ?\| ([\d,]*)", OPERATIONS, re.MULTILINE)
    said = {
        table: {f"fillfactor={fillfactor}", f"autovacuum_vacuum_threshold={rows}"}
        for names, fillfactor, rows in ((*row[:2], row[2].replace(",", "")) for row in tuned)
        for table in re.findall(r"\w+", names)
    }
    told = ("fillfactor=", "autovacuum_vacuum_threshold=")
    for table, kept in options.items():
        there = {option for option in kept if option.startswith(told)}
        assert said.get(table, set()) - set(told) == there, table
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?: = [^`]+)?`", OPERATIONS))
    for block in blocks(""):
        named |= set(re.findall(r"^([a-z_]+) = ", block, re.MULTILINE))
    known = of_postgres | set(BY_NAME) | set(options) | {metric.name for metric in metrics()}
    known |= set(EVENTS)
    assert named - known <= {"pg_dump", "pg_basebackup", "pg_cancel_backend", *VALUES}

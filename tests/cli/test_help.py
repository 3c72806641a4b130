"""What the command says of itself, and how it tells a fault."""

import pytest

from tests.support.program import waypost
from waypost import __version__
from waypost.settings import SETTINGS


def test_the_version_is_the_packages(tmp_path):
    assert waypost("--version", cwd=tmp_path).stdout.strip() == __version__


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("dev",),
        ("serve",),
        ("tenant",),
        ("token",),
        ("nodes",),
        ("migrate",),
        ("backup",),
        ("copy",),
    ],
    ids=lambda words: " ".join(words) or "waypost",
)
def test_help_has_examples(words: tuple[str, ...], tmp_path):
    shown = waypost(*words, "--help", cwd=tmp_path)

    assert shown.returncode == 0
    assert "Example" in shown.stdout
    assert "waypost " + " ".join(words) in shown.stdout.split("Example")[1]


def test_every_setting_is_a_flag_of_serve(tmp_path):
    shown = waypost("serve", "--help", cwd=tmp_path, environ={"COLUMNS": "200"}).stdout

    assert [each.flag for each in SETTINGS if each.flag not in shown] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("brew",), "brew"),
        (("dev", "--sped", "1"), "--sped"),
        (("dev", "--port", "many"), "--listen-port = 'many' is not a whole number"),
        (("dev", "--listen-host", "0.0.0.0"), "listens on loopback addresses only"),
        (("dev", "--memory", "--database", "sqlite:///x.db"), "contradict each other"),
        (("serve",), "no database is named"),
        (("serve", "--database", "sqlite:///:memory:"), "a database in memory"),
        (("serve", "--database", "sqlite:///no/such/place.db"), "No such file or directory"),
        (("serve", "--config", "none.toml"), "none.toml cannot be read"),
        (("token", "list", "--database", "sqlite:///typo.db"), "typo.db"),
        (("backup", "copy.db", "--database", "sqlite:///typo.db"), "typo.db"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_fault_is_one_line_on_stderr_and_status_2(words: tuple[str, ...], says: str, tmp_path):
    ended = waypost(*words, cwd=tmp_path)

    assert ended.returncode == 2
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_variable_stops_the_start_and_says_what_may_be_meant(tmp_path):
    ended = waypost("dev", cwd=tmp_path, environ={"WAYPOST_RETRY_MAX": "3"})

    assert ended.returncode == 2
    assert "is WAYPOST_RETRIES_MAX meant?" in ended.stderr


def test_fresh_removes_no_database_that_the_command_line_does_not_name(tmp_path):
    kept = tmp_path / "precious.db"
    kept.write_bytes(b"precious")

    ended = waypost(
        "dev", "--fresh", cwd=tmp_path, environ={"WAYPOST_DATABASE": "sqlite:///precious.db"}
    )

    assert ended.returncode == 2
    assert "say --database to mean it" in ended.stderr
    assert kept.read_bytes() == b"precious"

"""What holds for every run: `--results FILE` writes how each test went."""

pytest_plugins = ("tests.support.results",)

"""The home of how a command gets its settings: a flag for each, made from their table."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Group, Parameter
from msgspec import Struct

from waypost import settings
from waypost.settings import SETTINGS, Settings

ALIASES = {"listen_port": ("--listen-port", "--port")}

EVERY_SETTING = tuple(setting.name for setting in SETTINGS)

_GROUP = Group("Settings", sort_key=2)


class Given(Struct, frozen=True):
    """What was said about settings on the command line."""

    config: str | None
    flags: Mapping[str, str]

    def settings(
        self,
        *,
        defaults: Mapping[str, Any] | None = None,
        also: Mapping[str, str] | None = None,
    ) -> Settings:
        """Read all sources.  `also` holds variables that count where no other says it.

        Raises SettingsError.
        """
        return settings.read(
            environ={**(also or {}), **os.environ},
            config=self.config,
            flags=self.flags,
            defaults=defaults,
        )


def with_settings(
    names: Sequence[str] = EVERY_SETTING, *, defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command a flag for each named setting, and `--config`.

    The command takes a `Given` first; what follows it are its own parameters.
    `defaults` are those that the command replaces: its help shows them.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def run(*args: Any, config: str | None = None, **kwargs: Any) -> int:
            said = {name: kwargs.pop(name, None) for name in names}
            flags = {name: text for name, text in said.items() if text is not None}
            return command(Given(config, flags), *args, **kwargs)

        own = list(inspect.signature(command).parameters.values())[1:]
        parameters = [*own, *_parameters(names, defaults or {})]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameters(names: Sequence[str], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    texts = {"config": "A TOML file of settings. WAYPOST_CONFIG names one too."}
    for setting in SETTINGS:
        if setting.name in names:
            default = setting.kind.show(defaults.get(setting.name, setting.default))
            texts[setting.name] = setting.help + (f" [{default}]" if default else "")
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                Parameter(name=ALIASES.get(name), help=text, group=_GROUP, show_default=False),
            ],
        )
        for name, text in texts.items()
    ]

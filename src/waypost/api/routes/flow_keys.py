"""The home of flow-control keys over HTTP (contract section 12)."""

from collections.abc import Mapping, Sequence

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import GlobalParallelismJson, flow_key_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import check_names, one_of
from waypost.domain.errors import Invalid
from waypost.domain.flow import limit_of


async def page(api: Api, request: Request) -> Answer:
    given = _given(request, "search")
    found = await api.flow_keys.all(request.tenant, search=one_of(given, "search") or "")
    now_ms = api.clock.now_ms()
    return json_answer([flow_key_json(state, now_ms=now_ms) for state in found])


async def get(api: Api, request: Request) -> Answer:
    state = await api.flow_keys.get(request.tenant, request.segment(0))
    return json_answer(flow_key_json(state, now_ms=api.clock.now_ms()))


async def pause(api: Api, request: Request) -> Answer:
    await api.flow_keys.pause(request.tenant, request.segment(0), paused=True)
    return json_answer({})


async def resume(api: Api, request: Request) -> Answer:
    await api.flow_keys.pause(request.tenant, request.segment(0), paused=False)
    return json_answer({})


async def pin(api: Api, request: Request) -> Answer:
    given = _given(request, "parallelism", "rate", "period")
    period_s = _limit(given, "period")
    await api.flow_keys.pin(
        request.tenant,
        request.segment(0),
        parallelism=_limit(given, "parallelism"),
        rate=_limit(given, "rate"),
        period_ms=None if period_s is None else period_s * 1000,
    )
    return json_answer({})


async def unpin(api: Api, request: Request) -> Answer:
    given = _given(request, "parallelism", "rate")
    await api.flow_keys.unpin(
        request.tenant,
        request.segment(0),
        parallelism=_truth(given, "parallelism"),
        rate=_truth(given, "rate"),
    )
    return json_answer({})


async def reset(api: Api, request: Request) -> Answer:
    """Begin a new window.  The parallelism is what is under way, and has nothing to reset."""
    await api.flow_keys.reset_rate(request.tenant, request.segment(0))
    return json_answer({})


async def global_parallelism(api: Api, _request: Request) -> Answer:
    return json_answer(
        GlobalParallelismJson(
            parallelism_max=api.flow_keys.in_flight_max,
            parallelism_count=api.flow_keys.in_flight,
        )
    )


def _given(request: Request, *known: str) -> Mapping[str, Sequence[str]]:
    given = request.parameters()
    check_names(given, known=known)
    return given


def _limit(given: Mapping[str, Sequence[str]], name: str) -> int | None:
    text = one_of(given, name)
    return None if text is None else limit_of(name, text)


def _truth(given: Mapping[str, Sequence[str]], name: str) -> bool:
    text = (one_of(given, name) or "false").lower()
    if text not in {"true", "false"}:
        raise Invalid(f"{name} is neither true nor false")
    return text == "true"

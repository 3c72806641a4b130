"""The home of schedules over HTTP (contract section 8)."""

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import schedule_json
from waypost.api.exchange import Api, Request
from waypost.services.publishing import Incoming


async def create(api: Api, request: Request) -> Answer:
    """Make a schedule of a publish request: the destination is in the path, the body is the
    message's."""
    return await created(
        api,
        request,
        Incoming(
            destination=request.segments[0],
            query=request.query,
            header=request.header,
            body=await request.body(api),
            caller_ip=request.caller_ip,
        ),
    )


async def created(api: Api, request: Request, incoming: Incoming) -> Answer:
    """What follows a request that makes a schedule, by whichever path it came (W136)."""
    return json_answer({"scheduleId": await api.schedules.create(request.tenant, incoming)})


async def page(api: Api, request: Request) -> Answer:
    return json_answer([schedule_json(one) for one in await api.schedules.all(request.tenant)])


async def get(api: Api, request: Request) -> Answer:
    return json_answer(schedule_json(await api.schedules.get(request.tenant, request.segment(0))))


async def delete(api: Api, request: Request) -> Answer:
    """End a schedule; it is no fault that there is none (W127)."""
    await api.schedules.delete(request.tenant, request.segment(0))
    return json_answer({})


async def pause(api: Api, request: Request) -> Answer:
    await api.schedules.pause(request.tenant, request.segment(0))
    return json_answer({})


async def resume(api: Api, request: Request) -> Answer:
    await api.schedules.resume(request.tenant, request.segment(0))
    return json_answer({})

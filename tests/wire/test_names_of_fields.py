"""What remains of the names of fields that destinations have sent: nothing."""

import gc
import tracemalloc

from tests.support.rude_server import Peer, rude_server


async def test_answers_with_ever_new_long_names_take_no_memory(sender, a_request):
    async def script(peer: Peer) -> None:
        for n in range(60):
            await peer.read_request()
            name = b"x%d-".ljust(60_000, b"a") % n
            await peer.send(b"HTTP/1.1 200 OK\r\n" + name + b": 1\r\nContent-Length: 0\r\n\r\n")

    async with rude_server(script) as server:

        async def ask(count: int) -> int:
            """How many bytes are taken after so many answers."""
            for _ in range(count):
                outcome = await sender.send(a_request(server.url()))
                assert outcome.delivered
            del outcome
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await ask(10)
            after = await ask(50)
        finally:
            tracemalloc.stop()

    assert after - before < 500_000

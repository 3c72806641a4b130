"""The home of asking the operator's language model directly (contract section 13).

Nothing is kept: the question goes out while its caller waits, and the answer is
passed on as it comes.  A question that should survive a restart is a message
to `api/llm`.
"""

from msgspec import Struct

from waypost.domain.apis import Api, question_body, question_header
from waypost.domain.errors import NotFound
from waypost.wire.protocol import Request, Sender, Streamed


class Chat(Struct, frozen=True, kw_only=True):
    """`timeout_ms` covers a whole answer, however long it streams."""

    sender: Sender
    llm: Api | None
    timeout_ms: int

    async def ask(self, header: list[tuple[bytes, bytes]], body: bytes) -> Streamed:
        """The answer to a question, to be closed by the caller.

        Raises NotFound where no model is configured.
        """
        if self.llm is None:
            raise NotFound("chat completions are not configured: set llm_base_url")
        return await self.sender.stream(
            Request(
                method="POST",
                url=self.llm.url,
                header=question_header(header, self.llm.key),
                body=question_body(body),
                timeout_ms=self.timeout_ms,
                trusted=True,
            )
        )

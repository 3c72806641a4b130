// What the log and the dead letter queue say; given: the message, the others, and a state.
import { client, given, refusal, say } from "./program.mjs";

const { messageId, messageIds, state } = given;
const { logs, cursor } = await client.logs({ filter: { messageId } });

const paged = [];
let next;
do {
  const page = await client.logs({ filter: { messageIds }, count: 3, cursor: next });
  paged.push(page.logs.map((entry) => [entry.messageId, entry.state]));
  next = page.cursor;
} while (next !== undefined);

const deadLetters = [];
const pages = [];
next = undefined;
do {
  const page = await client.dlq.listMessages({ count: 2, cursor: next });
  deadLetters.push(...page.messages);
  pages.push(page.messages.length);
  next = page.cursor;
} while (next !== undefined);

say({
  logs,
  cursor: cursor ?? null,
  ofState: (await client.logs({ filter: { messageId, state } })).logs.map((entry) => entry.state),
  ofMessageIds: (await client.logs({ messageIds })).logs.map((entry) => entry.messageId),
  ofNobody: await client.logs({ filter: { messageId: "msg_unknown" } }),
  misspelled: await refusal(client.logs({ filter: { mesageId: messageId } })),
  paged,
  deadLetters,
  pages,
});

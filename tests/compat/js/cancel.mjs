// Both ways to cancel one message, a second time, and one that nobody knows; given: the receiver.
import { client, given, refusal, say } from "./program.mjs";

const waiting = async () =>
  (await client.publish({ url: `${given.receiver}/js/cancelled`, delay: 60 })).messageId;
const first = await waiting();
const second = await waiting();
say({
  messageIds: [first, second],
  cancelled: await client.messages.cancel(first),
  again: await client.messages.cancel(first),
  deleted: (await client.messages.delete(second)) ?? null,
  unknown: await refusal(client.messages.cancel("msg_unknown")),
  unknownGet: await refusal(client.messages.get("msg_unknown")),
});

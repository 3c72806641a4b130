// Enqueue in order; given: the receiver and the queue.
import { client, given, say } from "./program.mjs";

const queue = client.queue({ queueName: given.queue });
const url = `${given.receiver}/js/queue`;
const sent = [];
for (let number = 0; number < 5; number++) {
  sent.push(await queue.enqueueJSON({ url, body: { number }, label: "queued" }));
}
sent.push(await queue.enqueue({ url, body: "last", headers: { "X-Last": "yes" } }));
say({
  sent,
  message: await client.messages.get(sent[0].messageId),
  queue: await queue.get(),
});

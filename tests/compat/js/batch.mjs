// Batches; given: the receiver, a queue, and the name of a URL group.
import { client, given, refusal, say } from "./program.mjs";

const url = `${given.receiver}/js/batch`;

const endpoints = ["one", "other"].map((place) => ({ url: `${given.receiver}/batch/${place}` }));
await client.urlGroups.addEndpoints({ name: given.group, endpoints });

const sent = await client.batchJSON([
  { url, body: { number: 0 }, headers: { "X-Own": "first" }, retries: 0, label: ["a", "b"] },
  { urlGroup: given.group, body: { number: 1 } },
  { url, body: { number: 2 }, queueName: given.queue, delay: 1 },
  { url, method: "PUT", deduplicationId: "js-batch-once", body: { number: 3 } },
  { url, method: "PUT", deduplicationId: "js-batch-once", body: { number: 4 } },
]);
const messages = [];
for (const one of sent.flat()) {
  messages.push(await client.messages.get(one.messageId));
}
const [single] = await client.batch([{ url, body: "alone", delay: 600 }]);
await client.messages.cancel(single.messageId);
say({
  sent,
  messages,
  refused: await refusal(client.batch([{ url }, { url, retries: 101 }])),
});

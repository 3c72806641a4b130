// The dead letter queue: listed, deleted and retried; given: a URL whose first nine messages fail.
import { client, given, refusal, say } from "./program.mjs";

const there = (filter) => client.dlq.listMessages({ filter });

async function fail(label, request = {}) {
  const { messageId } = await client.publish({ url: given.url, retries: 0, label, ...request });
  for (;;) {
    const { messages } = await there({ messageId });
    if (messages.length === 1) {
      return messages[0];
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

await client.dlq.delete({ all: true });
const said = {};
const keyed = await fail(["js-one", "js-x"], {
  flowControl: { key: "js-dlq", parallelism: 2, rate: 7, period: "1m" },
  retryDelay: "15000",
});
const ones = [keyed, await fail("js-one"), await fail("js-one")];
const two = await fail("js-two");

const nothing = await there({ label: "js-none" });
said.listed = {
  label: (await there({ label: "js-one" })).messages.length,
  "both labels": (await there({ label: ["js-one", "js-two"] })).messages.length,
  ids: (await client.dlq.listMessages({ dlqIds: [keyed.dlqId, two.dlqId] })).messages.length,
  key: (await there({ flowControlKey: "js-dlq", url: given.url })).messages.length,
  none: nothing.messages.length,
};
said.misspelled = await refusal(there({ labeel: "js-one" }));
said.key = Object.fromEntries(
  [
    "flowControlKey", "parallelism", "rate", "period", "retryDelayExpression", "label", "labels",
  ].map((name) => [name, keyed[name]]),
);

said.deleted = await client.dlq.delete(ones[0].dlqId);
said["deleted again"] = await refusal(client.dlq.delete(ones[0].dlqId));
said["deleted many"] = [
  await client.dlq.deleteMany({ dlqIds: [ones[0].dlqId] }),
  await client.dlq.delete([ones[0].dlqId, ones[1].dlqId]),
];
const none = await client.dlq.delete({ filter: { label: "js-none" } });
said["one of them"] = await client.dlq.delete({ filter: { label: ["js-one", "js-two"] }, count: 1 });

// Five more fail; from then on the URL answers.
const fresh = [];
for (const label of ["js-r", "js-r", "js-f", "js-f", "js-f"]) {
  fresh.push(await fail(label));
}
const count = async (request) => (await client.dlq.retry(request)).responses.filter((one) => one.messageId).length;
said["retried by id"] = await count(fresh[0].dlqId);
said["deleted after a retry"] = await refusal(client.dlq.delete(fresh[0].dlqId));
said["nothing retried"] = [];
for (const filter of [
  { label: "js-none" },
  { url: "http://none.test/" },
  { flowControlKey: "js-none" },
  { responseStatus: 999 },
  { toDate: 2000 },
  { urlGroup: "js-none", queueName: "js-none", scheduleId: "scd_none", callerIp: "192.0.2.1" },
]) {
  said["nothing retried"].push(await client.dlq.retry({ filter }));
}
said["retried by filter"] = await count({ filter: { label: "js-r" } });
said["retried, one of them"] = await count({ filter: { label: "js-f" }, count: 1 });
await client.dlq.delete({ filter: { label: "js-f" }, count: 1 });
await client.dlq.delete({ filter: { label: ["js-one", "js-two"] } });
said["retried all"] = await count({ all: true });
said.cursors = [nothing.cursor ?? null, none.cursor ?? null];
said.left = (await client.dlq.listMessages()).messages.length;
say(said);

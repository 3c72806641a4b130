// Messages that differ, found in the log by what they are, and redacted; given: the receiver.
import { client, given, refusal, say } from "./program.mjs";

const to = `${given.receiver}/js/logs`;
const urlGroup = "js-logs";
await client.urlGroups.addEndpoints({ name: urlGroup, endpoints: [{ url: `${to}/group` }] });
const before = Date.now();
const later = { delay: 600 };
const sent = {
  one: await client.publishJSON({ ...later, url: `${to}/one?a=b`, label: ["js-one", "js-two"] }),
  three: await client.publishJSON({ ...later, url: `${to}/three`, label: "js-three" }),
  queued: await client.queue({ queueName: "js-logs" }).enqueueJSON({ ...later, url: `${to}/q` }),
  keyed: await client.publishJSON({
    ...later,
    url: `${to}/keyed`,
    flowControl: { key: "js-logs", rate: 5, period: "1h30m3s" },
  }),
};
sent.grouped = (await client.publishJSON({ ...later, urlGroup }))[0];

const names = Object.fromEntries(
  Object.entries(sent).map(([name, { messageId }]) => [messageId, name])
);
const found = async (filter) => {
  const { logs, cursor } = await client.logs({ filter: { ...filter, fromDate: before } });
  return { names: logs.map(({ messageId }) => names[messageId]).sort(), cursor: cursor ?? null };
};
const filters = {
  label: { label: "js-two" },
  labels: { label: ["js-one", "js-three"] },
  url: { url: `${to}/one?a=b` },
  urls: { url: [`${to}/one?a=b`, `${to}/three`] },
  urlGroup: { urlGroup },
  queue: { queueName: "js-logs" },
  key: { flowControlKey: "js-logs" },
  hostAndPath: { host: new URL(to).host, path: ["/js/logs/one", "/js/logs/q"] },
  both: { label: "js-one", url: `${to}/three` },
  state: { label: "js-one", state: "CREATED" },
  inProgress: { label: "js-one", state: "IN_PROGRESS" },
  until: { label: "js-one", toDate: new Date(0) },
  none: { label: "js-none" },
};
const answers = {};
for (const [name, filter] of Object.entries(filters)) {
  answers[name] = await found(filter);
}

const secret = "js-very-secret";
const redacted = {};
for (const [name, redact] of Object.entries({
  body: { body: true },
  header: { header: true },
  named: { header: ["Authorization"] },
})) {
  const { messageId } = await client.publish({
    url: `${to}/${name}`,
    body: secret,
    headers: { Authorization: secret, "Content-Type": "text/plain" },
    redact,
  });
  const { logs } = await client.logs({ filter: { messageIds: [messageId] } });
  redacted[name] = { message: await client.messages.get(messageId), logs };
}

say({
  answers,
  redacted,
  entries: (await client.logs({ filter: { label: "js-one" }, count: 1 })).logs,
  keyed: (await client.logs({ filter: { flowControlKey: "js-logs" } })).logs,
  misspelled: await refusal(client.logs({ filter: { labeel: "x" } })),
});

// A URL group from its first endpoint to its last; given: the receiver, and the group's name.
import { client, given, refusal, say } from "./program.mjs";

const { receiver, name } = given;
const one = `${receiver}/js/groups/one`;
const other = `${receiver}/js/groups/other`;
const groups = client.urlGroups;

await groups.addEndpoints({ name, endpoints: [{ name: "First endpoint", url: one }] });
await groups.addEndpoints({ name, endpoints: [{ name: "second", url: other }] });
const group = await groups.get(name);
const listed = await groups.list();

const published = await client.publishJSON({ urlGroup: name, body: { to: "both" } });
const enqueued = await client
  .queue({ queueName: "js-groups" })
  .enqueueJSON({ urlGroup: name, body: { in: "turn" } });
const once = { urlGroup: name, delay: 60, deduplicationId: "js-group-once" };
const duplicates = [await client.publishJSON(once), await client.publishJSON(once)];
const messages = {};
for (const { messageId } of [...published, ...enqueued]) {
  messages[messageId] = await client.messages.get(messageId);
}

await groups.removeEndpoints({ name, endpoints: [{ name: "second" }] });
const shrunk = await groups.get(name);
await groups.removeEndpoints({ name, endpoints: [{ url: one }] });
say({
  group,
  listed,
  published,
  enqueued,
  duplicates,
  messages,
  shrunk,
  ended: await refusal(groups.get(name)),
  deleted: (await groups.delete(name)) ?? null,
  unknown: await refusal(client.publish({ urlGroup: name })),
});

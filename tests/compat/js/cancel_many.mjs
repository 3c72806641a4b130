// Cancelling many, by ids, by each filter, and all; nothing of it is ever delivered.
import { client, refusal, say } from "./program.mjs";

const later = async (request = {}) =>
  (await client.publish({ url: "http://js-cancel.test/", delay: "1h", ...request })).messageId;
const cancel = (request) => client.messages.cancel(request);
const said = {};

await cancel({ all: true });
const ids = [await later(), await later()];
said.ids = await cancel(ids);
said.none = await cancel(ids);

for (const label of ["a", "a", "b", ["c", "a"]]) {
  await later({ label });
}
said["label, one of them"] = await cancel({ filter: { label: "a" }, count: 1 });
said.labels = await cancel({ filter: { label: ["a", "b"] } });

for (const key of ["k", "l", "m"]) {
  await later({ flowControl: { key: `js-${key}`, parallelism: 1 } });
}
said["flow control key"] = await cancel({ filter: { flowControlKey: "js-k" } });
said["flow control keys"] = await cancel({ filter: { flowControlKey: ["js-l", "js-m"] } });

for (const path of ["a", "b", "c", "a/more"]) {
  await later({ url: `http://js-cancel.test/${path}?q=1` });
}
said.path = await cancel({ filter: { path: "/a" } });
said.paths = await cancel({ filter: { path: ["/b", "/c"] } });
said.host = await cancel({ filter: { host: "js-cancel.test" } });

const url = "http://js-cancel.test/queued";
await client.queue({ queueName: "js-cancel" }).enqueue({ url, delay: "1h" });
await later({ url });
said["queue and url"] = await cancel({ filter: { queueName: "js-cancel", url } });

const { createdAt } = await client.messages.get(await later({ label: "dated" }));
said.dates = await cancel({
  filter: { fromDate: new Date(createdAt), toDate: createdAt, label: "dated" },
});
said.misspelled = await refusal(cancel({ filter: { labeel: "a" } }));
said.deleteMany = await client.messages.deleteMany([await later(), await later()]);
said.all = await cancel({ all: true });
said["all again"] = await client.messages.deleteAll();
say(said);

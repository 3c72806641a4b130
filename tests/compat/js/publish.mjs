// Every way to publish at once; given: the receiver.
import { Client } from "@upstash/qstash";
import { client, given, say } from "./program.mjs";

const to = given.receiver;
const sent = {
  text: await client.publish({
    url: `${to}/js/text?foo=bar&q=a%20b`,
    body: "snow ☃",
    headers: { "Content-Type": "text/plain", "X-Custom": "one" },
  }),
  json: await client.publishJSON({
    url: `${to}/js/json`,
    body: { hello: "world" },
    headers: { "My-Header": "mine" },
    method: "PUT",
    retries: 5,
    retryDelay: "1000 * (1 + retried)",
    timeout: 30,
    label: ["first", "second"],
  }),
  bytes: await client.publish({
    url: `${to}/js/bytes`,
    body: new Uint8Array([0, 255, 254, 10]),
  }),
  empty: await client.publish({ url: `${to}/js/empty` }),
  forwarded: await new Client({
    retry: false,
    headers: { "X-Global": "everywhere", "X-Both": "global" },
  }).publish({ url: `${to}/js/forwarded`, body: "x", headers: { "x-both": "own" } }),
};
for (const method of ["GET", "POST", "PUT", "PATCH", "DELETE"]) {
  sent[method] = await client.publish({ url: `${to}/js/${method}`, method, body: "x" });
}
const messages = {};
for (const [name, { messageId }] of Object.entries(sent)) {
  messages[name] = await client.messages.get(messageId);
}
say({ sent, messages });

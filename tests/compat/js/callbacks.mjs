// Messages with callbacks; given: the receiver, and a destination that refuses.
import { client, given, say } from "./program.mjs";

const to = given.receiver;
const sent = {
  delivered: await client.publishJSON({
    url: `${to}/js/callbacks/work`,
    body: { hello: "world" },
    callback: `${to}/js/callbacks/each`,
    headers: {
      "Upstash-Callback-Method": "PUT",
      "Upstash-Callback-Retries": "1",
      "Upstash-Callback-Forward-X-Own": "mine",
    },
  }),
  failed: await client.queue({ queueName: "js-callbacks" }).enqueue({
    url: given.refusing,
    body: "no",
    retries: 0,
    failureCallback: `${to}/js/callbacks/failed`,
  }),
};
const messages = {};
for (const [name, { messageId }] of Object.entries(sent)) {
  messages[name] = await client.messages.get(messageId);
}
say({ sent, messages });

// Questions to `api/llm` and to a provider of one's own; given: the receiver.
import { custom, upstash } from "@upstash/qstash";
import { client, given, say } from "./program.mjs";

const callback = `${given.receiver}/js/llm/told`;
const body = { model: "gpt-test", messages: [{ role: "user", content: "Hello?" }] };
const queue = client.queue({ queueName: "js-llm" });
const sent = {
  byName: await client.publishJSON({ api: { name: "llm" }, body, callback }),
  upstash: await client.publishJSON({ api: { name: "llm", provider: upstash() }, body, callback }),
  queued: await queue.enqueueJSON({ api: { name: "llm", provider: upstash() }, body, callback }),
  custom: await client.publishJSON({
    api: { name: "llm", provider: custom({ baseUrl: `${given.receiver}/own`, token: "sk-own" }) },
    body,
    callback,
  }),
};
const messages = {};
for (const [name, { messageId }] of Object.entries(sent)) {
  messages[name] = await client.messages.get(messageId);
}
say({ sent, messages });

// Messages for later, and duplicates; given: the receiver.
import { client, given, say } from "./program.mjs";

const url = `${given.receiver}/js/later`;
const notBefore = Date.now() / 1000 + 3600.4;
const sent = {
  seconds: await client.publishJSON({ url, delay: 60 }),
  days: await client.publishJSON({ url, delay: "10d" }),
  notBefore: await client.publishJSON({ url, notBefore, delay: 60 }),
};
const messages = {};
for (const [name, { messageId }] of Object.entries(sent)) {
  messages[name] = await client.messages.get(messageId);
}
const duplicates = {
  byId: [
    await client.publishJSON({ url, delay: 60, body: 1, deduplicationId: "js-once" }),
    await client.publishJSON({ url, delay: 60, body: 2, deduplicationId: "js-once" }),
  ],
  byContent: [
    await client.publishJSON({ url, delay: 60, body: 3, contentBasedDeduplication: true }),
    await client.publishJSON({ url, delay: 60, body: 3, contentBasedDeduplication: true }),
    await client.publishJSON({ url, delay: 60, body: 4, contentBasedDeduplication: true }),
  ],
};
say({ notBefore, messages, duplicates });

// Flow control; given: the receiver and the key.
import { client, given, refusal, say } from "./program.mjs";

const url = `${given.receiver}/js/flow`;
const { key } = given;
const { messageId } = await client.publishJSON({
  url,
  flowControl: { key, parallelism: 3, rate: 5, period: "1d" },
});
const message = await client.messages.get(messageId);
const first = await client.flowControl.get(key);

await client.flowControl.pause(key);
const paused = await client.flowControl.get(key);
const held = await client.publishJSON({ url, flowControl: { key, parallelism: 3 } });
const waiting = await client.flowControl.get(key);
await client.flowControl.resume(key);
const resumed = await client.flowControl.get(key);

await client.flowControl.pin(key, { parallelism: 3, rate: 20, period: 120 });
await client.publishJSON({ url, flowControl: { key, parallelism: 9 } });
const pinned = await client.flowControl.get(key);
await client.flowControl.unpin(key, { parallelism: true });
const half = await client.flowControl.get(key);
await client.flowControl.unpin(key, { rate: true });
const unpinned = await client.flowControl.get(key);

await client.flowControl.pause(key);
await client.flowControl.resetRate(key);
const reset = await client.flowControl.get(key);
await client.flowControl.resume(key);

say({
  message,
  first,
  paused,
  held,
  waiting,
  resumed,
  pinned,
  half,
  unpinned,
  reset,
  all: await client.flowControl.getGlobalParallelism(),
  unknown: await refusal(client.flowControl.get(`${key}-unknown`)),
  wrong: await refusal(client.publish({ url, flowControl: { key, rate: 0 } })),
});

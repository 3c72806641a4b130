// A queue from its making to its end; given: the receiver, and the queue's name.
import { client, given, refusal, say } from "./program.mjs";

const queue = client.queue({ queueName: given.name });
const url = `${given.receiver}/js/queues`;

await queue.upsert({ parallelism: 2 });
const made = await queue.get();
await queue.upsert({ paused: true });
const paused = await queue.get();
const { messageId } = await queue.enqueue({ url, body: "waits" });
const holding = await queue.get();
const listed = await queue.list();
await queue.resume();
let resumed = await queue.get();
while (resumed.lag > 0) resumed = await queue.get(); // until what waited has arrived
await queue.pause();
const waiting = await queue.enqueue({ url, body: "never" });
await queue.delete();
await queue.delete();
say({
  made,
  paused,
  holding,
  listed,
  resumed,
  messageId,
  waiting: waiting.messageId,
  ended: await refusal(queue.get()),
  unknown: await refusal(queue.pause()),
  none: await refusal(queue.upsert({ parallelism: 0 })),
});

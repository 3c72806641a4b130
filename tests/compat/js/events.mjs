// The log by both of its names; given: a URL.
import { client, given, say } from "./program.mjs";

const { messageId } = await client.publish({ url: given.url, delay: 600 });
const request = { filter: { messageId } };
say({ messageId, events: await client.events(request), logs: await client.logs(request) });

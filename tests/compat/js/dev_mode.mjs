// Development mode, from a client to a receiver, all in one program; given: whether by the
// environment.  `Client` gets a token and an address that dev mode has to put aside.
import { createServer } from "node:http";
import { once } from "node:events";
import { lookedFor } from "./offline.mjs";

const { Client, Receiver } = await import("@upstash/qstash");
const { byEnvironment } = JSON.parse(process.argv[2]);

const mode = byEnvironment ? {} : { devMode: true };
const receiver = new Receiver(mode);
let arrive;
const arrived = new Promise((resolve) => (arrive = resolve));
const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString("utf8");
  const verified = await receiver
    .verify({ signature: request.headers["upstash-signature"], body, url })
    .catch((error) => error.message);
  response.end();
  arrive({ body, verified, messageId: request.headers["upstash-message-id"] });
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
const url = `http://127.0.0.1:${server.address().port}/dev`;

const client = new Client({
  ...mode,
  retry: false,
  token: "not this",
  baseUrl: "http://nowhere.invalid",
});
const sent = await client.publishJSON({ url, body: { dev: true } });
const received = await arrived;
const message = await client.messages.get(sent.messageId);
server.close();
console.log(JSON.stringify({ sent, received, message, lookedFor }));
process.exit(0);

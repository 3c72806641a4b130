// A destination that verifies with the SDK's Receiver and says a line for each request.
// Its keys are QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY, which the SDK reads,
// but for two paths: at /rotated the key that signs is the next, at /stranger it is unknown.
import { createServer } from "node:http";
import { once } from "node:events";
import { Receiver } from "@upstash/qstash";
import { verifySignature } from "@upstash/qstash/nextjs";

const signing = process.env.QSTASH_CURRENT_SIGNING_KEY;
const receivers = {
  "/rotated": new Receiver({ currentSigningKey: "sig_other", nextSigningKey: signing }),
  "/stranger": new Receiver({ currentSigningKey: "sig_other", nextSigningKey: "sig_another" }),
};
const say = (line) => console.log(JSON.stringify(line));
const page = verifySignature((request, response) => {
  say({ path: request.url, body: request.body, verified: true });
  response.end();
});

const server = createServer(async (request, response) => {
  if (request.url === "/page") {
    await page(request, response);
    return;
  }
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString("utf8");
  const url = `http://${request.headers.host}${request.url}`;
  const verify = (change) =>
    (receivers[request.url] ?? new Receiver())
      .verify({
        signature: request.headers["upstash-signature"],
        upstashRegion: request.headers["upstash-region"],
        body,
        url,
        ...change,
      })
      .catch((error) => `${error.name}: ${error.message}`);
  say({
    path: request.url,
    body,
    verified: await verify({}),
    ofAnotherBody: await verify({ body: `${body} ` }),
    ofAnotherUrl: await verify({ url: `${url}/` }),
    header: request.headers,
  });
  response.end();
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
say({ url: `http://127.0.0.1:${server.address().port}` });

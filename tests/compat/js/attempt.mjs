// Calls that must be refused, by name; given: the names and the receiver.
import { Client } from "@upstash/qstash";
import { client, given, refusal, say } from "./program.mjs";

const url = `${given.receiver}/js/refused`;
const publish = (request) => client.publish({ url, ...request });

const calls = {
  "wrong token": () =>
    new Client({ retry: false, token: "wrong", baseUrl: process.env.QSTASH_URL }).publish({ url }),
  "no scheme": () => publish({ url: "example.com/path" }),
  "wrong scheme": () => publish({ url: "ftp://example.com/" }),
  "delay in words": () => publish({ delay: "soon" }),
  "delay of years": () => publish({ delay: "400d" }),
  "negative delay": () => publish({ delay: -5 }),
  "negative retries": () => publish({ retries: -1 }),
  "101 retries": () => publish({ retries: 101 }),
  "broken retry delay": () => publish({ retryDelay: "pow(2, " }),
  "foreign retry delay": () => publish({ retryDelay: "process.exit()" }),
  "unknown method": () => publish({ method: "TRACE" }),
  "colon in the id": () => publish({ deduplicationId: "a:b" }),
  "timeout of hours": () => publish({ timeout: "3h" }),
  "queue name with a blank": () => client.queue({ queueName: "a b" }).enqueue({ url }),

  "cron of four fields": () => client.schedules.create({ destination: url, cron: "* * * *" }),
};

const refusals = {};
for (const name of given.names) {
  refusals[name] = await refusal(calls[name]());
}
say(refusals);

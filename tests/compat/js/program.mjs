// What every program here begins with.  A program is given one JSON argument,
// and says one JSON value, on the last line of its output.
import { Client } from "@upstash/qstash";

export const given = JSON.parse(process.argv[2] ?? "null");

// The SDK reads QSTASH_URL and QSTASH_TOKEN.
export const client = new Client({ retry: false });

export function say(result) {
  console.log(JSON.stringify(result));
}

// How the SDK tells of a refusal; an answer that was no refusal shows itself.
export async function refusal(promise) {
  try {
    return { accepted: (await promise) ?? null };
  } catch (error) {
    return { name: error.name, status: error.status, message: error.message };
  }
}

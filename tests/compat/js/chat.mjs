// Questions that are answered while their caller waits; given: `stream` or not.
import { upstash } from "@upstash/qstash";
import { client, given, say } from "./program.mjs";

const chat = client.chat();
const question = { provider: upstash(), model: "gpt-test", stream: given.stream };
const messages = [{ role: "user", content: "Hello?" }];
const said = [];
try {
  for (const asked of [
    () => chat.create({ ...question, messages }),
    () => chat.prompt({ ...question, system: "Be brief.", user: "Hello?" }),
  ]) {
    const answer = await asked();
    if (given.stream) {
      let words = "";
      for await (const chunk of answer) {
        words += chunk.choices[0].delta.content;
      }
      said.push(words);
    } else {
      said.push(answer);
    }
  }
  say({ said });
} catch (error) {
  say({ said, name: error.name, status: error.status, message: error.message });
}

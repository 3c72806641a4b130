// Asks until a limit is passed: how the SDK tells of it; given: nothing.
import { client, say } from "./program.mjs";

async function until(ask) {
  for (let times = 0; times < 50; times++) {
    try {
      await ask();
    } catch (error) {
      const { name, status, limit, remaining, reset } = error;
      return { name, status, limit, remaining, reset };
    }
  }
}

say({
  burst: await until(() => client.queue().list()),
  daily: await until(() => client.publish({ url: "http://127.0.0.1:9/", retries: 0 })),
});

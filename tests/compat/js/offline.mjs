// A machine without the internet, and a list of what was looked for there.
import https from "node:https";
import { syncBuiltinESMExports } from "node:module";

export const lookedFor = [];

https.get = (url) => {
  lookedFor.push(String(url));
  throw new Error("offline");
};
syncBuiltinESMExports();

const localFetch = globalThis.fetch;
globalThis.fetch = (url, options) => {
  if (!String(url).startsWith("http://127.0.0.1:")) lookedFor.push(String(url));
  return localFetch(url, options);
};

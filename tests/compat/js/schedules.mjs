// A schedule from its making to its end; given: the receiver, and the schedule's id.
import { client, given, refusal, say } from "./program.mjs";

const { receiver, scheduleId } = given;
const destination = `${receiver}/js/schedules`;
const schedules = client.schedules;

const made = await schedules.create({
  scheduleId,
  destination,
  cron: "*/10 * * * * ",
  body: JSON.stringify({ hello: "world" }),
  headers: {
    "Content-Type": "application/json",
    "Test-Header": "test-value",
    "Upstash-Forward-Bypass-Tunnel-Reminder": "client-test",
  },
  delay: 10,
  timeout: 90,
  retries: 2,
  retryDelay: "7000 * retried",
  callback: `${receiver}/js/called`,
  failureCallback: `${receiver}/js/failed`,
  queueName: "js-schedules",
  label: ["one", "two"],
  flowControl: { key: "js-schedules", parallelism: 1, rate: 10, period: "1d" },
});
const whole = await schedules.get(scheduleId);
await schedules.pause({ schedule: scheduleId });
const paused = await schedules.get(scheduleId);
await schedules.resume({ schedule: scheduleId });
const resumed = await schedules.get(scheduleId);
const again = await schedules.create({ scheduleId, destination, cron: "@daily" });
const overwritten = await schedules.get(scheduleId);
const listed = (await schedules.list()).filter((one) => one.scheduleId === scheduleId);
const unnamed = await schedules.create({ destination, cron: "0 0 1 1 *" });
await Promise.all([schedules.delete(scheduleId), schedules.delete(unnamed.scheduleId)]);
await schedules.delete(scheduleId);
say({
  made,
  whole,
  paused: paused.isPaused,
  resumed: resumed.isPaused,
  again,
  overwritten,
  listed,
  unnamed,
  ended: await refusal(schedules.get(scheduleId)),
  refused: await refusal(schedules.create({ destination, cron: "* * * *" })),
});

// The handler in JavaScript: decides whether a contact is added without its profile. The guide
// docs/guides/error-handlers.md explains it.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

/** An error that is reported with a type of its own. */
class TaskFailed extends Error {
  constructor(type, message, { nonRetryable } = {}) {
    super(message);
    this.type = type;
    this.nonRetryable = nonRetryable;
  }
}

/** Types of errors after which the profile should be looked up again later. */
const PASSING = ["recoup.timeout", "directory.forbidden"];

/** The work itself: says whether the contact is added, and with which profile. */
function decide({ error, email }) {
  if (!email.includes("@")) {
    // The directory must have failed because of this. Say what is wrong, in place of whatever it said.
    throw new TaskFailed("contact.address_invalid", `${email} is not an address`, { nonRetryable: true });
  }
  if (error.type === "directory.objection") {
    return { add: false };
  }
  const later = PASSING.some((type) => error.type === type || error.type.startsWith(`${type}.`));
  return { add: true, profile: { company: null, source: "none", later } };
}

/** Codes for which a later call may succeed. */
const PASSING_CODES = [
  grpc.status.UNAVAILABLE,
  grpc.status.RESOURCE_EXHAUSTED,
  grpc.status.DEADLINE_EXCEEDED,
  grpc.status.ABORTED,
  grpc.status.CANCELLED,
  grpc.status.INTERNAL,
  grpc.status.UNKNOWN,
];

const { values: options } = parseArgs({ options: { address: { type: "string", default: "127.0.0.1:7430" } } });
const protos = fileURLToPath(new URL("../../../proto", import.meta.url));
const loaded = protoLoader.loadSync("recoup/v1/worker_service.proto", { includeDirs: [protos] });
const { recoup } = grpc.loadPackageDefinition(loaded);
const client = new recoup.v1.WorkerService(options.address, grpc.credentials.createInsecure());
const [pollTasks, completeTask, failTask] = ["pollTasks", "completeTask", "failTask"].map((method) => {
  const call = promisify(client[method].bind(client));
  return (request, timeoutS) => call(request, { deadline: Date.now() + timeoutS * 1000 });
});

/** Performs a task. Its result is an output, or the error that was thrown. */
async function perform(task) {
  let output;
  try {
    output = decide(JSON.parse(task.input.json));
  } catch (thrown) {
    const { name, message, stack: stackTrace, type = `node.${name}`, nonRetryable } = thrown;
    console.log(`${task.stepPath} attempt ${task.attempt}: ${message}`);
    await report(failTask, { taskToken: task.taskToken, error: { type, message, stackTrace, nonRetryable } });
    return;
  }
  console.log(`${task.stepPath} attempt ${task.attempt}: ${JSON.stringify(output)}`);
  await report(completeTask, { taskToken: task.taskToken, output: { json: JSON.stringify(output) } });
}

/** Sends a result until the server has answered. Sending it twice does no harm. */
async function report(call, request) {
  for (;;) {
    try {
      await call(request, 10);
      return;
    } catch (error) {
      console.error(error.message);
      if (!PASSING_CODES.includes(error.code)) {
        // Such as ATTEMPT_CLOSED: a timeout came first.
        return;
      }
      await sleep(1000);
    }
  }
}

const sessionId = randomUUID();
for (;;) {
  try {
    // The poll waits for up to 60 s on the server, so its deadline is a little longer.
    const polled = await pollTasks(
      {
        queue: "decisions",
        worker: "decide-node",
        taskTypes: ["contact.decide"],
        wait: { seconds: 60 },
        sessionId,
        // This worker polls only when it has no task. A task that was lost on its way here is then handed out again.
        held: {},
      },
      65,
    );
    for (const task of polled.tasks ?? []) {
      await perform(task);
    }
  } catch (error) {
    console.error(error.message);
    await sleep(1000);
  }
}

/*
 * A queue of documents for the specs of claiming, and what they ask about it.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const stage = require('./stage');

/** How often a waiting claimer looks for itself; short, so that a single server wakes it soon too. */
const POLL_MS = 20;
/** Until something has happened in the background. */
const SOON_MS = 10000;

const QUEUE = { state: String, n: Number };

function queue(how = {}) {
  return stage.lockable(QUEUE, { ...how, plugin: { pollInterval: POLL_MS, ...how.plugin } });
}

/** Stores so many new documents, with `n` from 0 on. */
async function fill(Model, count, state = 'new') {
  await Model.insertMany(Array.from({ length: count }, (_, n) => ({ n, state })));
}

const numbers = (docs) => docs.map(({ n }) => n);

/** How many documents are locked. */
const lockedIn = (Model) => Model.find().locked().countDocuments();

/** Resolves once the condition holds. */
async function until(condition, what) {
  const deadline = Date.now() + SOON_MS;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `${what} within ${SOON_MS} ms`);
    await pause(10);
  }
}

/** Asserts that `error` refuses the argument `name` because of what the message shows. */
function isRefusal(error, Type, name, shown) {
  assert.ok(error instanceof Type, `${error?.name} should be ${Type.name}: ${error?.message}`);
  assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
  assert.ok(error.message.includes(name), `${JSON.stringify(error.message)} names ${name}`);
  assert.ok(error.message.includes(shown), `${JSON.stringify(error.message)} shows ${shown}`);
}

module.exports = { QUEUE, SOON_MS, fill, isRefusal, lockedIn, numbers, queue, until };

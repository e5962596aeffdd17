/*
 * The queue that the specs of claiming and their processes share: jobs, each to be handled once, which is counted in the
 * job itself.
 */
'use strict';

const mongoose = require('../support/mongoose');
const lockRelease = require('../..');

/** What is a fault to the specs leaves the others' connections alone. */
const APP_NAME = 'claimer';

/** The model on this connection; `prepare(schema)` is called before it is compiled. */
function jobsOn(connection, { name = 'Job', plugin, prepare } = {}) {
  const schema = new mongoose.Schema(
    { state: String, priority: Number, n: Number, handled: Number, by: String, body: String },
    { collection: name.toLowerCase(), autoCreate: false, autoIndex: false },
  );
  schema.plugin(lockRelease, { pollInterval: 50, ...plugin });
  prepare?.(schema);
  return connection.model(name, schema);
}

/** Stores so many new jobs, and whatever index claims are fast with. */
async function fill(Job, count, make = (n) => ({ n, priority: n % 10, state: 'new', handled: 0 })) {
  await Job.collection.createIndex({ state: 1, priority: 1, locked: 1 });
  for (let done = 0; done < count; done += 10_000) {
    const jobs = Array.from({ length: Math.min(10_000, count - done) }, (_, i) => make(done + i));
    await Job.collection.insertMany(jobs, { ordered: false });
  }
}

/**
 * Handles jobs that were claimed together: whatever has lost its lock is not touched. Resolves to how many there were.
 */
async function handle(Job, jobs, by) {
  // One lease has locked them all: but for `_id` and token, their filters are the same.
  const claimed = { ...jobs[0].$lock.filter, _id: { $in: jobs.map(({ _id }) => _id) } };
  delete claimed['lockedBy.token'];
  const update = { $inc: { handled: 1 }, $set: { state: 'done', by } };
  const { matchedCount } = await Job.collection.updateMany(claimed, update);
  return matchedCount;
}

module.exports = { APP_NAME, fill, handle, jobsOn };

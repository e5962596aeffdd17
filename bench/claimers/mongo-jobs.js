/**
 * Claimer: the package @clipboard-health/mongo-jobs with a job that does nothing, 100 at once. What
 * it does for each job (claim, run, delete) is its own.
 */
'use strict';

const { fill } = require('./queue');

module.exports = async function open(uri, count) {
  // Its own Mongoose, which it shares with nobody here.
  const jobs = require.resolve('@clipboard-health/mongo-jobs');
  const mongoose = require(require.resolve('mongoose', { paths: [jobs] }));
  const { BackgroundJobs } = require(jobs);
  await mongoose.connect(uri);
  let handled = () => {};
  class Job {
    name = 'order';
    maxAttempts = 3;
    async perform() {
      handled(1);
    }
  }
  const backgroundJobs = new BackgroundJobs();
  backgroundJobs.register(Job, 'orders');
  const first = await backgroundJobs.enqueue(Job, { number: 0 });
  const collection = first.collection ?? first.constructor.collection;
  const stored = await collection.findOne({ _id: first._id }, { projection: { _id: 0 } });
  await fill(collection, count, (number) => ({
    ...stored,
    nextRunAt: new Date(number + 1),
    data: { number },
  }));
  return {
    async run(count) {
      handled = count;
      await backgroundJobs.start(['orders'], { maxConcurrency: 100 });
    },
  };
};

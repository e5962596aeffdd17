/**
 * Claimer: the package agenda with a job that does nothing, 100 at once. What it does for each job
 * (claim, run, save) is its own.
 */
'use strict';

const { fill } = require('./queue');

module.exports = async function open(uri, count) {
  const { Agenda } = require('agenda');
  const agenda = new Agenda({
    db: { address: uri },
    processEvery: 100,
    maxConcurrency: 100,
    defaultConcurrency: 100,
    // Without it agenda locks the whole queue before it runs the first job.
    lockLimit: 100,
    defaultLockLimit: 100,
  });
  let handled = () => {};
  agenda.define('order', async () => handled(1));
  await agenda._ready;
  // One as agenda itself stores it, and the others after its pattern.
  const { attrs } = await agenda.create('order', { number: 0 }).schedule(new Date(0)).save();
  const pattern = { projection: { _id: 0 } };
  const stored = await agenda._collection.findOne({ _id: attrs._id }, pattern);
  await fill(agenda._collection, count, (number) => ({
    ...stored,
    nextRunAt: new Date(number + 1),
    data: { number },
  }));
  return {
    async run(count) {
      handled = count;
      await agenda.start();
    },
  };
};

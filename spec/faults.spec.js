'use strict';
/*
 * The fault suite in its shortest setting: each nemesis for a few seconds, with another seed each time, which the name of
 * the spec tells. `npm run test:faults` runs the same for longer, and prints what it counted.
 */

const assert = require('node:assert/strict');
const { ReplicaSets, faultsOf, planTrials } = require('./faults/run');
const { runTrial } = require('./faults/trial');
const { requireTool } = require('./support/tools');

const SECONDS = 4;
/** A trial takes ten seconds; on a machine that does much else it may take long. */
const LIMIT_MS = 300_000;

const seed = Number(process.env.FAULTS_SEED ?? Math.floor(Math.random() * 2 ** 32));

describe(`under faults (FAULTS_SEED=${seed})`, function () {
  this.timeout(LIMIT_MS);

  const sets = new ReplicaSets();

  after(async function () {
    await sets.stop();
  });

  for (const trial of planTrials(seed)) {
    const promise = trial.isControl
      ? 'damage is done (negative control)'
      : 'no two hold, no write is lost, every call is answered';

    it(`${promise}: ${trial.nemesis.title}`, async function () {
      if (trial.nemesis.clocks) requireTool(this, 'faketime');
      const deployment = await sets.with(trial.members);
      const seconds = trial.isControl ? 2 * SECONDS : SECONDS;
      const report = await runTrial({ ...trial, seconds, deployment });
      assert.deepEqual(faultsOf(trial, report), []);
      assert.ok(report.acquisitions > 0);
    });
  }
});

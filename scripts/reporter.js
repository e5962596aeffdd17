/*
 * The reporter of the mocha runs that scripts/test.js starts: mocha's own `spec` (or `dot`, with SPEC_REPORTER=dot),
 * and the counts in the file that SPEC_SUMMARY names. It judges nothing.
 */
'use strict';

const { writeFileSync } = require('node:fs');
const { reporters, Runner } = require('mocha');

/** How long a process may go on after its last test before this says what keeps it. */
const IDLE_MS = 45_000;

/** The specs that did not run, and why their names say so: the `dot` reporter shows only their number. */
function listPending(runner) {
  const titles = [];
  runner.on(Runner.constants.EVENT_TEST_PENDING, (test) => titles.push(test.fullTitle()));
  runner.once(Runner.constants.EVENT_RUN_END, () => {
    for (const title of titles) console.log(`  pending: ${title}`);
  });
}

/** For the one who has to find out why a process does not end. */
function explainIdling() {
  const timer = setTimeout(() => {
    const kinds = process.getActiveResourcesInfo().join(', ') || 'nothing that Node.js knows of';
    console.error(`  still running ${IDLE_MS / 1000} s after the last test; alive are: ${kinds}`);
  }, IDLE_MS);
  timer.unref();
}

module.exports = function SummaryReporter(runner, options) {
  const isShort = process.env.SPEC_REPORTER === 'dot';
  const Shown = isShort ? reporters.Dot : reporters.Spec;
  const shown = new Shown(runner, options);
  if (isShort) listPending(runner);
  runner.once(Runner.constants.EVENT_RUN_END, () => {
    const { passes, failures, pending } = shown.stats;
    writeFileSync(process.env.SPEC_SUMMARY, JSON.stringify({ passes, failures, pending }));
    explainIdling();
  });
  return shown;
};

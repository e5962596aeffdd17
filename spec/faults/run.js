'use strict';
/*
 * `npm run test:faults [-- --long] [--seed N] [--nemesis name]`: every nemesis alone, then all together, then the negative
 * controls, each a trial of its own on a replica set of one or of three members, and a table of what came of them. Ends with an error if a
 * trial shows a violation, or a control none.
 */

const { startReplicaSet } = require('../support/deployment');
const { findExecutable } = require('../support/tools');
const { moment } = require('./journal');
const { CONTROLS, NEMESES } = require('./nemeses');
const { Random } = require('./random');
const { table } = require('./table');
const { runTrial } = require('./trial');

/** For how many seconds each nemesis strikes, and until how many locks were granted. */
const SHORT = { seconds: 8 };
const LONG = { seconds: 30, acquisitions: 9600 };
/** The controls need no more than this to show what they have to. */
const CONTROL_SECONDS = 8;

/** The replica sets of a run, one at a time, shared by the trials that follow each other. */
class ReplicaSets {
  #members;
  #started;

  /** A replica set with as many members, quick to notice that it has no primary. */
  async with(members) {
    if (this.#members === members) return this.#started;
    await this.stop();
    this.#started = await startReplicaSet({
      members,
      settings: { electionTimeoutMillis: 2000, heartbeatIntervalMillis: 500 },
    });
    this.#members = members;
    return this.#started;
  }

  async stop() {
    this.#members = undefined;
    await this.#started?.stop();
    this.#started = undefined;
  }
}

/** The trials of a run, each with a seed of its own that follows from the run's. */
function planTrials(seed, { isLong = false, only } = {}) {
  const random = new Random(seed);
  const extent = isLong ? LONG : SHORT;
  const trials = [
    ...Object.entries(NEMESES).map(([name, nemesis]) => ({ name, nemesis, ...extent })),
    ...Object.entries(CONTROLS).map(([name, nemesis]) => ({
      name,
      nemesis,
      seconds: CONTROL_SECONDS,
      isControl: true,
    })),
  ].map((trial) => ({
    members: 1,
    ...trial.nemesis,
    ...trial,
    seed: Math.floor(random.next() * 2 ** 32),
  }));
  trials.sort((a, b) => a.members - b.members);
  return only ? trials.filter(({ name }) => name === only) : trials;
}

/** What a trial's report has wrong: its violations, or that a control has none. */
function faultsOf({ isControl }, report) {
  if (!isControl)
    return report.violations.map(({ kind, doc, text }) => `${kind} (${doc}): ${text}`);
  const damage = report.overlaps + report.lost;
  return damage > 0 ? [] : ['the protection was off, and no damage was seen'];
}

function parseArguments(argv) {
  const options = { seed: Math.floor(Math.random() * 2 ** 32), isLong: false };
  for (let i = 0; i < argv.length; i++) {
    if (argv[i] === '--long') options.isLong = true;
    else if (argv[i] === '--seed') options.seed = Number(argv[++i]);
    else if (argv[i] === '--nemesis') options.only = argv[++i];
    else throw new Error(`unknown argument ${argv[i]}`);
  }
  if (!Number.isSafeInteger(options.seed)) throw new Error('--seed takes a whole number');
  return options;
}

async function main() {
  const options = parseArguments(process.argv.slice(2));
  const trials = planTrials(options.seed, options);
  if (trials.length === 0) {
    const names = Object.keys({ ...NEMESES, ...CONTROLS }).join(', ');
    throw new Error(`--nemesis takes one of: ${names}`);
  }
  console.log(`seed ${options.seed}`);
  const start = moment();
  const sets = new ReplicaSets();
  const rows = [];
  try {
    for (const trial of trials) {
      if (trial.nemesis.clocks && !findExecutable('faketime')) {
        if (process.env.REQUIRE_TOOLS === '1') throw new Error('faketime is not installed');
        console.log(`${trial.name}: faketime is not installed, so all clocks are right`);
        trial.nemesis = { ...trial.nemesis, clocks: false };
      }
      const deployment = await sets.with(trial.members);
      const report = await runTrial({ ...trial, deployment });
      const faults = faultsOf(trial, report);
      rows.push({ ...trial, report, faults });
      const seconds = ((moment() - start) / 1000).toFixed(0);
      const verdict = faults.length === 0 ? 'ok' : `${faults.length} FAULTS`;
      console.log(`\n${seconds} s ${trial.name}: ${verdict}\n${table(rows.slice(-1))}`);
      for (const fault of faults.slice(0, 20)) console.log(`  ${fault}`);
      if (faults.length > 0) process.exitCode = 1;
    }
  } finally {
    await sets.stop();
  }
  console.log(`\n${table(rows)}\n\nseed ${options.seed}`);
}

if (require.main === module) {
  main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
}

module.exports = { ReplicaSets, faultsOf, planTrials };

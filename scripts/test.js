/*
 * `npm test`: the checks, then the specs, one mocha process per run: the contract on every Mongoose and on both
 * topologies, the specs of connections and parity on every Mongoose, all others on the newest. Prints one table of
 * counts; the last line is their sum. `npm test -- FILE... --grep TEXT` and the variables MONGOOSE and MONGO_TOPOLOGY
 * narrow it, and leave the checks out. It starts no MongoDB: each run does, through spec/support/deployment.js.
 */
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const ROOT = path.join(__dirname, '..');
const VERSIONS = ['6', '7', '8', '9'];
const NEWEST = VERSIONS.at(-1);
const TOPOLOGIES = ['replicaSet', 'single'];
/** Specs of the folder spec/, or of a folder in it, that older versions of Mongoose have to pass as well. */
const EVERY_VERSION = /^spec\/(connection|parity|fence)\b.*\.spec\.js$/;

/** How long a process may take to end by itself after its last test. */
const EXIT_MS = 60_000;
/** How long one run may take in all: a blocked event loop cannot time its own tests out. */
const RUN_MS = 40 * 60_000;
const POLL_MS = 200;

/** Splits the command line into the files that narrow the runs and the options that go to mocha. */
function parseArguments(argv) {
  const files = [];
  const options = [];
  for (let index = 0; index < argv.length; index++) {
    const argument = argv[index];
    if (argument === '--grep' || argument === '-g' || argument === '--fgrep' || argument === '-f') {
      options.push(argument, argv[++index]);
    } else if (argument.startsWith('-')) {
      options.push(argument);
    } else {
      files.push(path.relative(ROOT, path.resolve(argument)).split(path.sep).join('/'));
    }
  }
  return { files, options };
}

/** All specs of the folder spec/, by their paths from the root. */
function specFiles() {
  return fs
    .readdirSync(path.join(ROOT, 'spec'), { recursive: true })
    .map((name) => `spec/${name.split(path.sep).join('/')}`)
    .filter((name) => name.endsWith('.spec.js'))
    .toSorted();
}

/** Every run that a full test takes. */
function planRuns() {
  const specs = specFiles();
  const contract = TOPOLOGIES.flatMap((topology) =>
    VERSIONS.map((mongoose) => ({
      name: 'contract',
      mongoose,
      topology,
      files: ['index.spec.js'],
    })),
  );
  const older = VERSIONS.filter((mongoose) => mongoose !== NEWEST).map((mongoose) => ({
    name: 'connection, parity',
    mongoose,
    topology: 'replicaSet',
    files: specs.filter((file) => EVERY_VERSION.test(file)),
  }));
  const all = { name: 'all other specs', mongoose: NEWEST, topology: 'replicaSet', files: specs };
  return [...contract, ...older, all].filter((run) => run.files.length > 0);
}

/** The runs that the command line and the environment leave over. */
function narrowRuns(runs, files) {
  const { MONGOOSE, MONGO_TOPOLOGY } = process.env;
  return runs
    .map((run) => ({
      ...run,
      files: files.length === 0 ? run.files : run.files.filter((file) => files.includes(file)),
    }))
    .filter((run) => run.files.length > 0)
    .filter((run) => !MONGOOSE || run.mongoose === MONGOOSE)
    .filter((run) => !MONGO_TOPOLOGY || run.topology === MONGO_TOPOLOGY);
}

/** Ends a run with everything that it started. */
function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch {
    // It has ended by itself in the meantime.
  }
}

/** Runs mocha once; resolves to its counts, with what went wrong outside of a test as a further failure. */
function runMocha(run, options, isNarrowed) {
  const summary = path.join(os.tmpdir(), `mongoose-lock-release-specs-${process.pid}.json`);
  const mocha = path.join(ROOT, 'node_modules', 'mocha', 'bin', '_mocha');
  const reporter = path.join(__dirname, 'reporter.js');
  const start = Date.now();
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      [mocha, '--reporter', reporter, ...options, ...run.files],
      {
        cwd: ROOT,
        env: {
          ...process.env,
          MONGOOSE: run.mongoose,
          MONGO_TOPOLOGY: run.topology,
          SPEC_REPORTER: isNarrowed ? 'spec' : 'dot',
          SPEC_SUMMARY: summary,
        },
        stdio: ['ignore', 'inherit', 'inherit'],
        // A group of its own, so that no server of a killed run is left behind.
        detached: true,
      },
    );
    const complaints = [];
    let endedAt;
    const watch = setInterval(() => {
      if (endedAt === undefined && fs.existsSync(summary)) endedAt = Date.now();
      if (endedAt !== undefined && Date.now() - endedAt > EXIT_MS) {
        complaints.push(
          `it did not end within ${EXIT_MS / 1000} s after its last test, and was killed`,
        );
      } else if (endedAt === undefined && Date.now() - start > RUN_MS) {
        complaints.push(`it was killed after ${RUN_MS / 60_000} minutes, in the middle of a test`);
      } else {
        return;
      }
      clearInterval(watch);
      killGroup(child);
    }, POLL_MS);
    const endWithUs = () => killGroup(child);
    process.once('exit', endWithUs);

    child.on('close', (code, signal) => {
      clearInterval(watch);
      process.off('exit', endWithUs);
      killGroup(child);
      const counts = { passes: 0, failures: 0, pending: 0 };
      const isComplete = fs.existsSync(summary);
      if (isComplete) Object.assign(counts, JSON.parse(fs.readFileSync(summary, 'utf8')));
      fs.rmSync(summary, { force: true });
      if (complaints.length === 0 && (!isComplete || (code !== 0 && counts.failures === 0))) {
        complaints.push(`it ended with ${signal ?? `code ${code}`} besides its tests`);
      }
      const executed = counts.passes + counts.failures;
      if (executed === 0 && complaints.length === 0 && !isNarrowed) {
        complaints.push('it executed no test');
      }
      for (const complaint of complaints)
        console.error(`\n  FAILED: ${describe(run)}: ${complaint}\n`);
      counts.failures += complaints.length;
      resolve({ ...run, ...counts, seconds: Math.round((Date.now() - start) / 1000) });
    });
  });
}

function describe({ name, mongoose, topology }) {
  return `${name} (Mongoose ${mongoose}, ${topology})`;
}

/** Rows of cells as aligned lines: the first three columns are words, the others numbers. */
function table(rows) {
  const widths = rows[0].map((_, column) =>
    Math.max(...rows.map((row) => `${row[column]}`.length)),
  );
  const align = (cell, column) =>
    column < 3 ? `${cell}`.padEnd(widths[column]) : `${cell}`.padStart(widths[column]);
  return rows.map((row) => row.map(align).join('  ')).join('\n');
}

async function test() {
  const { files, options } = parseArguments(process.argv.slice(2));
  const isNarrowed =
    files.length + options.length > 0 ||
    Boolean(process.env.MONGOOSE || process.env.MONGO_TOPOLOGY);
  if (!isNarrowed) {
    const { status } = spawnSync(process.execPath, [path.join(__dirname, 'check.js')], {
      cwd: ROOT,
      stdio: 'inherit',
    });
    if (status !== 0) throw new Error('the checks failed; no spec was run');
  }

  const runs = narrowRuns(planRuns(), files);
  const results = [];
  for (const run of runs) {
    console.log(`\n== ${describe(run)}`);
    results.push(await runMocha(run, options, isNarrowed));
  }
  const sum = (count) => results.reduce((total, result) => total + result[count], 0);
  const executed = sum('passes') + sum('failures');
  console.log(
    `\n${table([
      ['run', 'Mongoose', 'topology', 'passed', 'failed', 'pending', 'seconds'],
      ...results.map((result) => [
        result.name,
        result.mongoose,
        result.topology,
        result.passes,
        result.failures,
        result.pending,
        result.seconds,
      ]),
    ])}\n`,
  );
  if (executed === 0) console.error('no test was executed');
  if (sum('failures') > 0 || executed === 0) process.exitCode = 1;
  console.log(`${sum('passes')} passed, ${sum('failures')} failed, ${sum('pending')} skipped`);
}

for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));
test().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});

/**
 * Row `hold`: many locks that are held and kept alive at once in a process that does nothing else.
 * Owns how many, how long, and what is read from it: locks lost, CPU of the client and of its main
 * thread, memory per held lock. The holder is a process of its own (hold-process.js).
 */
'use strict';

const { fork } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');

const { deployment } = require('../../spec/support/deployment');
const { ADDON_BINARY, buildRelease } = require('../build');
const { processCpu, threadCpu } = require('../cpu');
const { digits, spread, table, written } = require('../figures');

const LENGTHS = {
  full: { rounds: 1, locks: 10_000, durationMs: 10_000, holdMs: 60_000 },
  quick: { rounds: 1, locks: 1000, durationMs: 3000, holdMs: 9000 },
};
/** The last locks have just been acquired, and their first renewal belongs to the row as well. */
const GOALS = { lost: 0, clientPercent: 2, mainMsPerSecond: 1 };

const METRICS = [
  ['lost', 'locks lost', `${GOALS.lost}`],
  ['clientPercent', 'CPU of the client, % of one core', `below ${GOALS.clientPercent}`],
  ['mainMsPerSecond', 'CPU of its main thread, ms per second', `below ${GOALS.mainMsPerSecond}`],
  ['idleMainMsPerSecond', '  of which without any lock', ''],
  ['serverPercent', 'CPU of mongod, % of one core', ''],
  ['bytesPerLock', 'memory per held lock, bytes', ''],
];

module.exports = {
  summary: 'locks that are held: lost, CPU and memory while they are kept alive',

  async run({ quick, rounds }) {
    buildRelease();
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    const server = await deployment();
    try {
      const measured = [];
      for (let round = 0; round < lengths.rounds; round++) {
        const uri = server.uriFor(`lock_release_bench_${process.pid}_${round}`);
        measured.push(await hold(uri, server, lengths));
      }
      const figures = Object.fromEntries(
        METRICS.map(([key]) => [key, spread(measured.map((one) => one[key]))]),
      );
      return { result: { lengths, figures, measured }, text: describe(figures, lengths) };
    } finally {
      await server.stop();
    }
  },
};

async function hold(uri, server, { locks, durationMs, holdMs }) {
  const child = fork(path.join(__dirname, '..', 'hold-process.js'), [uri], {
    execArgv: ['--expose-gc'],
    env: { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: ADDON_BINARY },
  });
  const ended = once(child, 'exit');
  const ask = async (request) => {
    child.send(request);
    const [answer] = await Promise.race([
      once(child, 'message'),
      ended.then(([code]) => Promise.reject(new Error(`the holder ended with ${code}`))),
    ]);
    return answer;
  };
  const cpu = () => ({
    client: processCpu(child.pid),
    main: threadCpu(child.pid, child.pid),
    server: server.servers.length
      ? server.servers.reduce((sum, { pid }) => sum + processCpu(pid), 0)
      : null,
    at: performance.now(),
  });
  try {
    const { rss: empty } = await ask({ prepare: locks });
    const idle = await during(cpu, Math.min(holdMs / 2, 10_000));
    const { rss: full } = await ask({ lock: durationMs });
    const busy = await during(cpu, holdMs);
    const { lost } = await ask({ count: true });
    return {
      lost,
      clientPercent: busy.client / 10_000,
      mainMsPerSecond: busy.main / 1000,
      idleMainMsPerSecond: idle.main / 1000,
      serverPercent: busy.server === null ? null : busy.server / 10_000,
      bytesPerLock: (full - empty) / locks,
    };
  } finally {
    child.disconnect();
    await ended;
  }
}

/** Microseconds of CPU per second of this time. */
async function during(cpu, ms) {
  const before = cpu();
  await pause(ms);
  const after = cpu();
  const perSecond = (name) =>
    after[name] === null ? null : (after[name] - before[name]) / ((after.at - before.at) / 1000);
  return { client: perSecond('client'), main: perSecond('main'), server: perSecond('server') };
}

function describe(figures, { rounds, locks, durationMs, holdMs }) {
  const head = `${locks} locks of ${digits(durationMs / 1000)} s, held for ${digits(holdMs / 1000)} s`;
  return table([
    [head, `median of ${rounds} (lowest to highest)`, 'goal'],
    ...METRICS.map(([key, title, goal]) => [title, written(figures[key]), goal]),
  ]);
}

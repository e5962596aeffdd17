/**
 * Row `wake`: several processes want the lock of one document, and it goes from one to the next.
 * Owns who competes, in which order and for how long, and what is shown of it; how a crowd of
 * processes is measured stands in wake/.
 */
'use strict';

const { deployment, startSingle } = require('../../spec/support/deployment');
const { buildRelease } = require('../build');
const { Comparison, gridTable } = require('../comparison');
const { onDatabase } = require('../database');
const { digits, table } = require('../figures');
const { storedOrder } = require('../order');
const { progress, rotated } = require('../rounds');
const contenders = require('../wake/contenders');
const { Crowd } = require('../wake/crowd');
const { judge } = require('../wake/judge');
const { redisVersion, startRedis } = require('../wake/redis');

const COUNTS = [2, 8, 32];
const LENGTHS = {
  full: { rounds: 5, holdMs: 20, warmMs: 1500, measureMs: 5000 },
  quick: { rounds: 1, holdMs: 20, warmMs: 800, measureMs: 1500 },
};

const P95 = { key: 'p95Ms', title: 'release to next holder, p95', unit: 'ms' };
const PER_SECOND = { key: 'perSecond', title: 'hand-overs per second', more: true };
const COMPARED = [
  { key: 'p50Ms', title: 'release to next holder, p50', unit: 'ms' },
  P95,
  { key: 'p99Ms', title: 'release to next holder, p99', unit: 'ms' },
  PER_SECOND,
];
const FAIRNESS = [
  { key: 'evenness', title: 'locks of the least / the most served' },
  { key: 'longestWaitMs', title: 'longest wait for the lock', unit: 'ms' },
  { key: 'givenUp', title: 'lock calls that gave up' },
];

/**
 * How a process that has released goes on. Latencies are compared in turns alone: where it asks
 * again at once, a poll finds the lock only in the short time that it is free.
 */
const MANNERS = {
  inTurns: {
    title: 'IN TURNS: who has released asks again when another one has the lock.',
    metrics: [
      ...COMPARED,
      { key: 'serverMs', title: 'CPU of the server per hand-over', unit: 'ms' },
      { key: 'clientMs', title: 'CPU of all clients per hand-over', unit: 'ms' },
      ...FAIRNESS,
    ],
  },
  atOnce: {
    title: 'AT ONCE: who has released asks again at once.',
    metrics: [
      PER_SECOND,
      { key: 'handedOverPercent', title: 'locks that went to another process', unit: '%' },
      ...FAIRNESS,
    ],
  },
};

/** Of this plugin, by the medians of two processes, in turns. */
const GOALS = { p95Ms: 10, timesBetterThanPolling: 20 };

module.exports = {
  summary: 'a lock that several processes want: from its release to the next holder',

  async run({ quick, rounds, only }) {
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    const names = available(only ?? Object.keys(contenders));
    if (names.some((name) => contenders[name].server !== 'redis')) buildRelease();

    const servers = new Map();
    try {
      for (const kind of new Set(names.map((name) => contenders[name].server))) {
        servers.set(kind, await start[kind]());
      }
      const measured = await measureAll(names, servers, lengths);
      const versions = Object.fromEntries(
        [...servers].map(([kind, { version }]) => [kind, version]),
      );
      const manners = Object.keys(MANNERS).map((manner) => [manner, summarise(measured, manner)]);
      const result = Object.fromEntries(manners);
      return { result: { versions, lengths, ...result, measured }, text: describe(result) };
    } finally {
      await Promise.all([...servers.values()].map((server) => server.stop()));
    }
  },
};

function isInstalled(name) {
  try {
    require.resolve(name);
    return true;
  } catch {
    return false;
  }
}

/** Without those whose server or packages are not installed. */
function available(names) {
  const unknown = names.filter((name) => !contenders[name]);
  if (unknown.length) throw new Error(`no contender of this row: ${unknown.join(', ')}`);
  const hasRedis = redisVersion() && isInstalled('redlock') && isInstalled('ioredis');
  const left = names.filter((name) => contenders[name].server !== 'redis' || hasRedis);
  if (left.length < names.length) {
    console.log(
      'LEFT OUT: redlock, which needs a redis-server on the PATH and ' +
        '`npm install --prefix bench --ignore-scripts`.',
    );
  }
  if (left.length === 0) throw new Error('no contender is left');
  return left;
}

/** Starts each kind of server: `{ version, pids, uri, prepare(subject), stop() }`. */
const start = {
  replicaSet: async () => mongo(await deployment()),
  single: async () => mongo(await startSingle()),
  redis: async () => ({ version: redisVersion(), prepare() {}, ...(await startRedis()) }),
};

async function mongo(server) {
  const uri = server.uriFor(`lock_release_bench_${process.pid}`);
  return {
    uri,
    version: await onDatabase(uri, async (db) => (await db.admin().serverInfo()).version),
    pids: server.servers.map(({ pid }) => pid),
    prepare: (collection) =>
      onDatabase(uri, (db) => db.collection(collection).insertOne(storedOrder(0))),
    async stop() {
      if (server.kind === 'external') await onDatabase(uri, (db) => db.dropDatabase());
      await server.stop();
    },
  };
}

/** Each crowd has the machine to itself: its processes are started for it, and ended after it. */
async function measureAll(names, servers, { rounds, ...lengths }) {
  const measured = [];
  for (let round = 1; round <= rounds; round++) {
    for (const count of COUNTS) {
      for (const contender of rotated(names, round)) {
        const { title, server } = contenders[contender];
        const { uri, pids, prepare } = servers.get(server);
        const subject = `wake_${contender}_${count}_${round}`;
        progress(`round ${round} of ${rounds}: ${count} processes, ${title}`);
        await prepare(subject);
        const crowd = await Crowd.start(contender, count, { uri, subject, serverPids: pids });
        try {
          for (const manner of Object.keys(MANNERS)) {
            const inTurns = manner === 'inTurns';
            const figures = judge(await crowd.compete({ inTurns, ...lengths }));
            measured.push({ round, manner, contender, column: count, ...figures });
          }
        } finally {
          await crowd.end();
        }
      }
    }
  }
  progress('');
  return measured;
}

function summarise(measured, manner) {
  const comparison = new Comparison(measured.filter((one) => one.manner === manner));
  const perMetric = (metrics, grid) =>
    Object.fromEntries(metrics.map((metric) => [metric.key, grid(metric)]));
  const figures = perMetric(MANNERS[manner].metrics, (metric) => comparison.figures(metric));
  if (manner !== 'inTurns') return { figures };
  const against = (base) => perMetric(COMPARED, (metric) => comparison.ratios(metric, base));
  return {
    timesBetterThanPolling: against('poll250'),
    timesBetterThanRedlock: against('redlock'),
    figures,
  };
}

function describe({ inTurns, atOnce }) {
  const titles = {
    titleOf: (name) => contenders[name].title,
    columnTitle: (count) => `${count} processes`,
  };
  const ratios = (grids) =>
    COMPARED.map(({ key, title }) => gridTable(title, grids[key], titles)).filter(Boolean);
  const figures = (manner, grids) =>
    MANNERS[manner].metrics.map(({ key, title, unit }) =>
      gridTable(unit ? `${title}, ${unit}` : title, grids[key], titles),
    );
  const titled = (title, tables) => (tables.length ? [title, ...tables] : []);
  return [
    'Median of the rounds, with the lowest and the highest in brackets.',
    MANNERS.inTurns.title,
    ...titled(
      'RATIOS: how many times better than polling in the same round (above 1 is better).',
      ratios(inTurns.timesBetterThanPolling),
    ),
    ...titled(
      'RATIOS: how many times better than redlock in the same round.',
      ratios(inTurns.timesBetterThanRedlock),
    ),
    'FIGURES',
    ...figures('inTurns', inTurns.figures),
    MANNERS.atOnce.title,
    ...figures('atOnce', atOnce.figures),
    ...goals(inTurns),
  ]
    .filter(Boolean)
    .join('\n\n');
}

function goals({ figures, timesBetterThanPolling }) {
  const p95 = figures[P95.key].ours?.[2]?.median;
  const times = timesBetterThanPolling[P95.key].ours?.[2]?.median;
  const verdict = (reached) => (reached ? 'reached' : 'missed');
  const rows = [];
  if (p95 !== undefined) {
    rows.push(['  p95, ms', `below ${GOALS.p95Ms}`, digits(p95), verdict(p95 < GOALS.p95Ms)]);
  }
  if (times !== undefined) {
    const goal = GOALS.timesBetterThanPolling;
    const reached = verdict(times >= goal);
    rows.push(['  p95, times better than polling', `at least ${goal}`, digits(times), reached]);
  }
  return rows.length ? ['GOALS of this plugin, 2 processes, in turns.', table(rows)] : [];
}

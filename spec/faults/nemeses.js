'use strict';
/*
 * The nemeses of the fault suite: what goes wrong while processes lock, work and release. Each strikes until its time is
 * up and then heals what it has broken; what it does follows from the seed. None looks at what comes of it.
 */

const { setTimeout: sleep } = require('node:timers/promises');
const { mongo } = require('../support/mongoose');

/**
 * @typedef {object} Field what a nemesis strikes
 * @property {import('./locker').Locker[]} lockers
 * @property {import('./wire-relay').WireRelay[]} relays in front of each server, if the nemesis asked for them
 * @property {object} deployment
 * @property {number} duration of a lock, in milliseconds
 * @property {number} strikes how often it was struck
 */

/** Strikes again and again with pauses in between, which are `pace` times as long as usual. */
async function repeat(hit, field, random, { isOver, pace }, low, high) {
  for (;;) {
    await sleep(pace * random.between(low, high));
    if (isOver()) return;
    field.strikes += 1;
    await hit(field, random);
  }
}

/** A locker that is not stopped or being replaced by another nemesis right now. */
function pickLocker({ lockers }, random) {
  const locker = random.pick(lockers);
  return locker.isStopped || locker.isBeingReplaced ? undefined : locker;
}

async function killLocker(field, random) {
  const locker = pickLocker(field, random);
  if (!locker) return;
  locker.isBeingReplaced = true;
  try {
    await locker.killAndReplace();
  } finally {
    locker.isBeingReplaced = false;
  }
}

async function stopLocker(field, random) {
  const chosen = [pickLocker(field, random), pickLocker(field, random)].filter(Boolean);
  for (const locker of chosen) locker.stop();
  // Sometimes it misses nothing, mostly its lock runs out meanwhile.
  await sleep(field.duration * random.between(0.5, 3));
  for (const locker of chosen) locker.proceed();
}

async function keepBusy(field, random) {
  pickLocker(field, random)?.busy();
}

async function stepDown({ deployment }) {
  const primary = await deployment.primary();
  // It closes no connections, and answers before or after it has stepped down.
  await primary
    .command({ replSetStepDown: 3, secondaryCatchUpPeriodSecs: 2, force: true })
    .catch(() => {});
  await deployment.primary();
}

async function killPrimary({ deployment }, random) {
  const primary = await deployment.primary();
  await primary.kill('SIGKILL');
  await sleep(random.between(500, 3000));
  await primary.start();
  await deployment.primary();
}

const NOTHING = { configureFailPoint: 'failCommand', mode: 'off' };

const FAILURES = [
  { errorCode: 11600 },
  { errorCode: 91 },
  { errorCode: 189 },
  { errorCode: 10107 },
  { errorCode: 6 },
  { closeConnection: true },
  {
    writeConcernError: { code: 64, codeName: 'WriteConcernFailed', errmsg: 'waited for too long' },
  },
  {
    writeConcernError: { code: 91, codeName: 'ShutdownInProgress', errmsg: 'is shutting down' },
  },
];

async function everywhere({ deployment }, command) {
  // A server that is down has no fail point either.
  await Promise.allSettled(deployment.servers.map((server) => server.command(command)));
}

async function failCommands(field, random) {
  const names = random.chance(0.5) ? ['findAndModify'] : ['findAndModify', 'update'];
  await everywhere(field, {
    configureFailPoint: 'failCommand',
    mode: { activationProbability: random.between(0.1, 0.5) },
    data: { failCommands: names, ...random.pick(FAILURES) },
  });
  await sleep(random.between(300, 1200));
  await everywhere(field, NOTHING);
}

/** How late a message comes in at the most, in durations of a lock. */
const LATEST = 4;

/** Some requests are lost, some answers, and some requests come in when nobody expects them any more. */
async function loseMessages({ relays, duration }, random) {
  const own = random.fork();
  const share = random.between(0.02, 0.2);
  const judge = (command) => {
    if (command.find !== undefined || !own.chance(share)) return undefined;
    return own.pick(['loseAnswer', 'loseRequest', { late: own.between(0, LATEST * duration) }]);
  };
  for (const relay of relays) relay.judge = judge;
  await sleep(random.between(300, 1500));
  for (const relay of relays) relay.judge = undefined;
}

async function breakNetwork({ relays, duration }, random) {
  const what = random.pick(['blackhole', 'delay', 'reset']);
  const struck = random.chance(0.5) ? relays : [random.pick(relays)];
  if (what === 'reset') {
    for (const relay of struck) relay.reset();
    return;
  }
  for (const relay of struck) {
    if (what === 'delay') relay.delay = random.between(10, 0.7 * duration);
    else relay.blackhole = true;
  }
  await sleep(random.between(0.3, 3) * duration);
  for (const relay of struck) {
    // When nothing came through for some time, connections may be cut or go on.
    if (what === 'blackhole' && random.chance(0.5)) relay.reset();
    relay.delay = 0;
    relay.blackhole = false;
  }
}

/** Whoever waits is told of releases by a change stream: its cursor is killed, as an operator does, while it is idle. */
async function killCursors({ deployment }) {
  const primary = await deployment.primary();
  const find = {
    aggregate: 1,
    pipeline: [
      { $currentOp: { allUsers: true, idleCursors: true } },
      { $match: { 'cursor.originatingCommand.pipeline.0.$changeStream': { $exists: true } } },
      { $project: { ns: 1, id: '$cursor.cursorId' } },
    ],
    cursor: {},
  };
  // A primary that goes away takes its cursors along.
  const reply = await primary.command(find).catch(() => undefined);
  for (const { ns, id } of reply?.cursor.firstBatch ?? []) {
    const [dbName, ...names] = ns.split('.');
    // A small one is read as a number.
    const cursors = [mongo.Long.fromString(String(id))];
    const kill = { killCursors: names.join('.'), cursors };
    await primary.command(kill, dbName).catch(() => {});
  }
}

/** Strikes by their names, with the shortest and the longest pause in between; `together` has them all. */
const STRIKES = {
  kill: (...all) => repeat(killLocker, ...all, 600, 1500),
  stop: (...all) => repeat(stopLocker, ...all, 50, 300),
  busy: (...all) => repeat(keepBusy, ...all, 100, 500),
  stepdown: (...all) => repeat(stepDown, ...all, 1500, 3500),
  primary: (...all) => repeat(killPrimary, ...all, 1500, 4000),
  failpoints: (...all) => repeat(failCommands, ...all, 100, 500),
  answers: (...all) => repeat(loseMessages, ...all, 100, 500),
  network: (...all) => repeat(breakNetwork, ...all, 200, 1200),
  cursors: (...all) => repeat(killCursors, ...all, 100, 600),
};

const NEMESES = {
  none: { title: 'none', strikes: [] },
  kill: { title: 'SIGKILL of holders', strikes: ['kill'] },
  stop: { title: 'SIGSTOP of holders', strikes: ['stop'] },
  busy: { title: 'blocked event loop', strikes: ['busy'] },
  clock: { title: 'clocks 5 min off', strikes: [], clocks: true },
  stepdown: { title: 'primary steps down', strikes: ['stepdown'], members: 3 },
  primary: { title: 'SIGKILL of the primary', strikes: ['primary'], members: 3 },
  failpoints: { title: 'commands fail', strikes: ['failpoints'] },
  answers: { title: 'messages lost or late', strikes: ['answers'], relayed: true },
  network: { title: 'network breaks', strikes: ['network'], relayed: true },
  cursors: { title: 'change streams killed', strikes: ['cursors'] },
  together: {
    title: 'all together',
    strikes: Object.keys(STRIKES),
    relayed: true,
    clocks: true,
    members: 3,
  },
};

/** What must go wrong when a protection is off, or else the suite would prove nothing. Much work outlasts its lock here. */
const CONTROLS = {
  unfenced: { title: 'without the fence', protection: 'unfenced' },
  unowned: { title: 'without owner checks', protection: 'unowned' },
  original: { title: 'the original package', protection: 'original' },
};
for (const control of Object.values(CONTROLS))
  Object.assign(control, { strikes: ['stop'], long: 0.4 });

/** Lets a nemesis strike until it is over; resolves when everything is whole again. */
async function strike({ strikes }, field, random, isOver) {
  // Many at once strike less often each, or nothing would get done.
  const pace = strikes.length > 1 ? 3 : 1;
  await Promise.all(strikes.map((name) => STRIKES[name](field, random.fork(), { isOver, pace })));
  while (!isOver()) await sleep(100);
  for (const relay of field.relays) {
    relay.judge = undefined;
    relay.delay = 0;
    relay.blackhole = false;
  }
  for (const locker of field.lockers) {
    if (locker.isStopped) locker.proceed();
  }
  await everywhere(field, NOTHING);
}

module.exports = { CONTROLS, LATEST, NEMESES, strike };

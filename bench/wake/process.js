/**
 * One of the processes that compete in row `wake`. Locks, holds, releases and asks again, and keeps
 * the moments at which that happened; must not judge them, since only the parent knows everybody's.
 * Told what to do, and answers, by messages (crowd.js). Ends with its parent.
 *
 *   node bench/wake/process.js <contender> <uri> <name of what is locked>
 */
'use strict';

const { setTimeout: sleep } = require('node:timers/promises');

const contenders = require('./contenders');

const [name, uri, subject] = process.argv.slice(2);

let contender;
let running = false;
/** Ends the pause of a process that lets another go first. */
let goOn = () => {};

/** Milliseconds of a clock that all processes of the machine share. */
function now() {
  return Number(process.hrtime.bigint()) / 1e6;
}

async function compete({ holdMs, inTurns }) {
  running = true;
  const holds = [];
  let givenUp = 0;
  let askedAt = now();
  while (running) {
    const held = await contender.lock();
    if (!held) {
      givenUp++;
      continue;
    }
    const lockedAt = now();
    const another = new Promise((resolve) => (goOn = resolve));
    // Once it is over, those who still wait come to their turn, and nobody holds for long.
    if (running) {
      if (inTurns) process.send({ locked: true });
      await sleep(holdMs);
    }
    const releasedAt = now();
    await contender.release(held);
    holds.push({ askedAt, lockedAt, releasedAt });
    if (inTurns && running) await another;
    askedAt = now();
  }
  process.send({ done: { holds, givenUp } });
}

process.on('message', ({ run, go, stop }) => {
  if (run) compete(run).catch(fail);
  if (stop) running = false;
  if (go || stop) goOn();
});
process.on('disconnect', async () => {
  // A server that is gone as well must not keep this process.
  setTimeout(() => process.exit(), 3000);
  await contender?.close();
  process.exit();
});

function fail(error) {
  console.error(error);
  process.exit(1);
}

contenders[name].open(uri, subject).then((opened) => {
  contender = opened;
  process.send({ ready: true });
}, fail);

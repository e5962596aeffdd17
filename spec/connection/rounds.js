/*
 * The process of rounds.spec.js: connects to URI, locks, releases and closes, ROUNDS times, and prints as JSON what
 * it had open before, after a quarter and at the end. With PLAIN set it does the same without a lock. Run with --expose-gc. It must end by itself.
 */
'use strict';

const fs = require('node:fs');
const mongoose = require('../support/mongoose');
const { lockAndRelease, lockableOn } = require('../support/lockable');

const { URI, ROUNDS, PLAIN } = process.env;
const SETTLE_MS = 30000;

/** The sockets of this process, or undefined where there is no /proc. */
function sockets() {
  if (!fs.existsSync('/proc/self/fd')) return undefined;
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
    } catch {
      // The descriptor of the listing itself is gone by now.
      return false;
    }
  }).length;
}

/** What is open now, one fresh connection to ask the server included. */
async function measure() {
  const connection = await mongoose.createConnection(URI, { maxPoolSize: 1 }).asPromise();
  const { connections } = await connection.db.admin().command({ serverStatus: 1 });
  global.gc();
  const now = {
    connections: connections.current,
    sockets: sockets(),
    threads: fs.existsSync('/proc/self/task')
      ? fs.readdirSync('/proc/self/task').length
      : undefined,
    rss: process.memoryUsage().rss,
  };
  await connection.close();
  return now;
}

/** Measures until no more connections are open than at first: they close in the background. */
async function settled(first) {
  const deadline = Date.now() + SETTLE_MS;
  for (;;) {
    const now = await measure();
    if (now.connections <= first.connections || Date.now() > deadline) return now;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

async function round() {
  const connection = await mongoose.createConnection(URI).asPromise();
  if (PLAIN) await lockableOn(connection).create({ name: 'round' });
  else await lockAndRelease(connection);
  await connection.close();
}

async function main() {
  const first = await measure();
  // The first round starts the native runtime, which has descriptors and threads of its own.
  await round();
  const warm = await settled(first);
  let quarter;
  for (let count = 1; count <= Number(ROUNDS); count += 1) {
    await round();
    if (count === Math.ceil(ROUNDS / 4)) quarter = await settled(first);
  }
  const end = await settled(first);
  console.log(JSON.stringify({ first, warm, quarter, end }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});

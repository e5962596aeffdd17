/**
 * One contender, seen from the benchmark: starts its child process, tells it to run, and measures
 * from outside what a run costs. Owns the protocol between the two and the child's life.
 *
 * The protocol is lines of words on stdin and stdout, simple enough for Rust without a parser:
 *
 *   <- ready                                            connected, documents loaded
 *   -> run <in flight> <warm-up ms> <measured ms> <1: watch the event loop's delay>
 *   <- begin                                            the warm-up is over
 *   <- end <pairs, half a pair per call> <elapsed ms> <event-loop delay p99, ms>
 *   <- idle                                             the last pair has been answered
 *
 * The end of stdin ends the child.
 */
'use strict';

const { spawn } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');
const readline = require('node:readline');

const { ADDON_BINARY } = require('./build');
const { processCpu, threadCpu } = require('./cpu');

const PROCESS = path.join(__dirname, 'contender-process.js');

/**
 * Starts a contender on one collection or several, by settings that contender-process.js describes.
 * One that is a program of its own takes one collection, whole. The addon is the release build, unless
 * `addon` names another; null stands for the one that is installed.
 */
async function startContender(name, options) {
  const { uri, collections, settings = {}, serverPids, addon = ADDON_BINARY } = options;
  const contender = require(`./contenders/${name}`);
  const [command, args] = contender.binary
    ? [contender.binary, [uri, ...collections]]
    : [process.execPath, [PROCESS, name, uri, collections.join(','), JSON.stringify(settings)]];
  const child = spawn(command, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: addon ? { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: addon } : process.env,
  });
  const exited = once(child, 'exit');
  // Writing to a child that has ended: `expect` finds out, and says more.
  child.stdin.on('error', () => {});
  const lines = readline.createInterface({ input: child.stdout })[Symbol.asyncIterator]();

  async function expect(word) {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the contender "${name}" ended when "${word}" was expected of it`);
    const [said, ...numbers] = value.split(' ');
    if (said !== word) throw new Error(`the contender "${name}" said "${value}", not "${word}"`);
    return numbers.map(Number);
  }

  function readCpu() {
    return {
      // In a Rust process the main thread only waits: its CPU would say nothing.
      main: contender.binary ? null : threadCpu(child.pid, child.pid),
      client: processCpu(child.pid),
      server: serverPids.length ? sum(serverPids.map(processCpu)) : null,
    };
  }

  await expect('ready');

  return {
    name,
    pid: child.pid,
    title: contender.title,
    hasEventLoop: !contender.binary,

    /** Runs once and returns figures per pair: CPU in microseconds, null where it cannot be had. */
    async measure({ flight, warmMs, measureMs, watchDelay = false }) {
      child.stdin.write(`run ${flight} ${warmMs} ${measureMs} ${watchDelay ? 1 : 0}\n`);
      await expect('begin');
      const before = readCpu();
      const [pairs, elapsedMs, delayP99Ms] = await expect('end');
      const after = readCpu();
      await expect('idle');

      const perPair = (key) => (after[key] === null ? null : (after[key] - before[key]) / pairs);
      return {
        pairs,
        pairsPerSecond: pairs / (elapsedMs / 1000),
        mainMicros: perPair('main'),
        clientMicros: perPair('client'),
        serverMicros: perPair('server'),
        delayP99Ms: watchDelay ? delayP99Ms : null,
      };
    },

    async stop() {
      child.stdin.end();
      const overdue = setTimeout(() => child.kill('SIGKILL'), 10_000);
      await exited;
      clearTimeout(overdue);
    },
  };
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

module.exports = { startContender };

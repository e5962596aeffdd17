'use strict';
/*
 * The library as a guest in somebody's process: it neither crashes it nor keeps it alive, nor changes how it ends; it
 * takes worker threads that come and go, clusters, several copies of itself, a blocked event loop and bursts. What must
 * not happen to the process of the specs happens in child processes: see fixtures/.
 */

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const path = require('node:path');
const mongoose = require('./support/mongoose');
const { startSingle } = require('./support/deployment');
const { lockAndRelease, lockableOn } = require('./support/lockable');

const MEBIBYTE = 1024 * 1024;
/** What has not ended by then hangs: two hundred threads take their time on a busy machine. */
const HANGS_MS = 900000;
/** Crashes at the end of a process come now and then: each way to end is tried so often. */
const TIMES = 3;

describe('process', function () {
  this.timeout(1000000);

  let server;
  let connection;

  before(async function () {
    server = await startSingle();
    connection = await mongoose
      .createConnection(server.uriFor('app'), { serverSelectionTimeoutMS: 120000 })
      .asPromise();
    await lockAndRelease(connection);
  });

  after(async function () {
    await connection?.close();
    await server?.stop();
  });

  /** Runs a fixture to its end: `{ code, signal, stdout, stderr }`. `onReady` gets the process after its first output. */
  function run(name, { args = [], env = {}, onReady } = {}) {
    const file = path.join(__dirname, 'fixtures', name);
    const child = spawn(process.execPath, ['--expose-gc', file, ...args], {
      env: { ...process.env, ...env, URI: server.uriFor('app') },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk) => {
      if (output.stdout === '') onReady?.(child);
      output.stdout += chunk;
    });
    child.stderr.on('data', (chunk) => {
      output.stderr += chunk;
    });
    const watch = setTimeout(() => child.kill('SIGKILL'), HANGS_MS);
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => {
        clearTimeout(watch);
        resolve({ code, signal, ...output });
      });
    });
  }

  /** Runs a fixture that ends by itself and without an error; resolves to the JSON in its last line. */
  async function result(name, options) {
    const { code, signal, stdout, stderr } = await run(name, options);
    assert.deepEqual({ code, signal, stderr }, { code: 0, signal: null, stderr: '' });
    return JSON.parse(stdout.trim().split('\n').pop());
  }

  function stored(count) {
    return lockableOn(connection).insertMany(Array.from({ length: count }, () => ({})));
  }

  describe('that ends', function () {
    for (const [way, code] of [
      ['by itself', 0],
      ['by itself, with answers outstanding when it disconnects', 0],
      ['by itself, before it ever locked', 0],
      ['by process.exit', 3],
      ['by an uncaught exception', 1],
      ['by an uncaught exception that sets its own code', 7],
    ]) {
      it(`${way} has the exit code ${code}`, async function () {
        for (let time = 0; time < TIMES; time += 1) {
          const ended = await run('ending.js', { args: [way] });
          assert.deepEqual([ended.code, ended.signal], [code, null], ended.stderr);
          assert.equal(ended.stdout, 'ready\n');
          if (code === 1) assert.match(ended.stderr, /thrown on purpose/);
          else assert.equal(ended.stderr, '');
        }
      });
    }

    for (const signal of ['SIGINT', 'SIGTERM', 'SIGKILL']) {
      it(`by ${signal} ends of it, with calls in flight`, async function () {
        for (let time = 0; time < TIMES; time += 1) {
          const onReady = (child) => child.kill(signal);
          const ended = await run('ending.js', { args: ['by a signal'], onReady });
          assert.deepEqual([ended.code, ended.signal], [null, signal], ended.stderr);
        }
      });
    }
  });

  describe('with worker threads', function () {
    it('is left as it was by 200 in turn that alone use the addon', async function () {
      const measured = await result('turns.js', { env: { TURNS: '200' } });
      const { quarter, end, mostOpen, isLoaded } = measured;
      const shown = JSON.stringify(measured);
      assert.equal(isLoaded, false);
      assert.ok(mostOpen > 0, shown);
      assert.equal(end.connections, 0, shown);
      if (end.fds !== undefined) {
        assert.ok(end.fds <= quarter.fds, shown);
        assert.ok(end.threads <= quarter.threads, shown);
      }
      // The first quarter warms every pool and cache. A leaked environment costs megabytes each time.
      const grown = (end.rss - quarter.rss) / MEBIBYTE;
      assert.ok(grown < 40, `${grown.toFixed(1)} MiB more after the first quarter: ${shown}`);
    });

    it('goes on locking on its main thread while others are terminated in mid-call', async function () {
      const env = { TURNS: '24', AT_ONCE: '2', MAIN: '1', ENDINGS: 'hang' };
      const { end, mostOpen, rounds } = await result('turns.js', { env });
      assert.ok(rounds > 10, `${rounds} rounds`);
      assert.ok(mostOpen > 0);
      assert.equal(end.connections, 0);
    });

    it('serves several at once, however they end', async function () {
      const env = { TURNS: '24', AT_ONCE: '6' };
      const { end, mostOpen } = await result('turns.js', { env });
      assert.ok(mostOpen > 0);
      assert.equal(end.connections, 0);
    });
  });

  it('of a cluster gives each document to one worker', async function () {
    const { won, codes } = await result('clustered.js');
    assert.ok(
      won.every((count) => count === 1),
      won.join(),
    );
    assert.deepEqual(codes, [0, 0, 0, 0]);
  });

  it('may load the library many times, reset or from another path', async function () {
    const { distinct, winners, turns } = await result('copies.js');
    assert.equal(distinct, 11);
    assert.equal(winners, 1);
    // The winner of the race had the first token.
    assert.deepEqual(
      turns,
      Array.from(turns, (_, turn) => turn + 2),
    );
  });

  it('may import it as an ES module', async function () {
    const got = await result('imported.mjs');
    assert.deepEqual(got, { locked: true, refused: null, released: true, isLockError: true });
  });

  it('gets every answer of a batch in which callbacks throw', async function () {
    const { calls, answered, twice, uncaught } = await result('answering.js', {
      args: ['throwing'],
    });
    assert.deepEqual(
      { answered, twice, uncaught },
      { answered: calls, twice: 0, uncaught: calls / 5 },
    );
  });

  it('sees no unhandled rejection and no warning when its calls fail', async function () {
    const counts = await result('answering.js', { args: ['failing'] });
    assert.deepEqual(counts, { handled: 25, unhandled: 0, warnings: 0 });
  });

  it('may collect its garbage while calls are in flight', async function () {
    const { calls, answered } = await result('answering.js', { args: ['collecting'] });
    assert.equal(answered, calls);
  });

  describe('whose event loop', function () {
    it('was blocked during calls gets each answer once', async function () {
      const docs = await stored(200);
      const counts = docs.map(() => 0);
      const answers = docs.map((doc, number) => {
        return new Promise((resolve) => {
          doc.lock(600000, (error, locked) => {
            counts[number] += 1;
            resolve(locked ?? error);
          });
        });
      });
      const end = performance.now() + 2000;
      while (performance.now() < end);
      assert.ok(
        counts.every((count) => count === 0),
        'no callback is called synchronously',
      );

      for (const locked of await Promise.all(answers)) assert.equal(locked?.$lock?.held, true);
      await new Promise((resolve) => setTimeout(resolve, 200));
      assert.ok(counts.every((count) => count === 1));
    });

    it('starts 10,000 calls at once gets all answers, and one lock per document', async function () {
      const docs = await stored(500);
      const calls = Array.from({ length: 10000 }, (_, number) => docs[number % 500].lock(600000));
      const answers = await Promise.all(calls);
      const won = answers.filter(Boolean);
      assert.equal(won.length, 500);
      assert.equal(new Set(won.map(({ id }) => id)).size, 500);
    });
  });
});

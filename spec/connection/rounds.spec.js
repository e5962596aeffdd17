/*
 * Many short connections: what 200 rounds of connect, lock and close leave behind is nothing. Measured in a process
 * of its own, whose sockets, threads and memory are this subject's alone.
 */
'use strict';

const assert = require('node:assert/strict');
const { execFile } = require('node:child_process');
const path = require('node:path');
const { promisify } = require('node:util');
const { startSingle } = require('../support/deployment');

const run = promisify(execFile);
const ROUNDS = 200;
const MEBIBYTE = 1024 * 1024;

describe('connection: many short ones', function () {
  this.timeout(600000);

  let server;

  before(async function () {
    server = await startSingle();
  });

  after(() => server?.stop());

  /** What a process of such rounds had open: see rounds.js. */
  async function measure(env) {
    const script = path.join(__dirname, 'rounds.js');
    const { stdout } = await run(process.execPath, ['--expose-gc', script], {
      env: { ...process.env, ROUNDS: String(ROUNDS), URI: server.uriFor('rounds'), ...env },
    });
    return JSON.parse(stdout.trim().split('\n').pop());
  }

  // The first quarter warms every pool and cache; a leak goes on after it, round by round.
  const growth = ({ quarter, end }) => (end.rss - quarter.rss) / MEBIBYTE;

  it(`leaves no socket, thread or native memory behind after ${ROUNDS} rounds`, async function () {
    const locking = await measure({});
    const { first, warm, quarter, end } = locking;
    const shown = JSON.stringify(locking);
    assert.equal(end.connections, first.connections, shown);
    if (end.sockets !== undefined) {
      assert.ok(end.sockets <= warm.sockets, shown);
      assert.ok(end.threads <= quarter.threads, shown);
    }

    // Mongoose's own connections leave something behind too, so the same rounds without a lock are the measure.
    const plain = await measure({ PLAIN: '1' });
    const more = growth(locking) - growth(plain);
    assert.ok(more < 20, `${more.toFixed(1)} MiB more than without locks: ${shown}`);
  });
});

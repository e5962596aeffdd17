/**
 * The processes that compete for one lock, seen from the benchmark. Owns their lives, the window in
 * which they are measured, and that they end without anybody holding the lock; judge.js reads the
 * moments that they bring back.
 */
'use strict';

const { fork } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const { ADDON_BINARY } = require('../build');
const { processCpu } = require('../cpu');

const PATIENCE = { ready: 180_000, done: 90_000, exit: 10_000 };

class Crowd {
  #children;
  #serverPids;
  /** Rejects when one of them ends before its time. */
  #failure;
  #ending = false;

  /** Starts so many processes of a contender; resolves when all of them are connected. */
  static async start(name, count, { uri, subject, serverPids }) {
    const crowd = new Crowd(name, count, { uri, subject, serverPids });
    try {
      await crowd.#all('ready');
      return crowd;
    } catch (error) {
      await crowd.end();
      throw error;
    }
  }

  constructor(name, count, { uri, subject, serverPids }) {
    this.#serverPids = serverPids;
    this.#children = Array.from({ length: count }, () =>
      fork(path.join(__dirname, 'process.js'), [name, uri, subject], {
        env: { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: ADDON_BINARY },
      }),
    );
    this.#failure = Promise.race(
      this.#children.map(async (child) => {
        // An error is a message that could not be sent: the exit that follows says as much.
        child.on('error', () => {});
        const [code, signal] = await once(child, 'exit');
        if (this.#ending) return;
        throw new Error(`a process of "${name}" ended with ${signal ?? `exit code ${code}`}`);
      }),
    );
    // Whoever waits for something is told; nobody may be waiting just then.
    this.#failure.catch(() => {});
  }

  /**
   * Lets them compete, and resolves to what each of them did, with the window that counts and the
   * CPU that it took, in microseconds. In turns: who has released asks again only when another one
   * has got the lock.
   */
  async compete({ inTurns, holdMs, warmMs, measureMs }) {
    const stopRelaying = inTurns ? this.#relayTurns() : () => {};
    const done = this.#all('done', warmMs + measureMs);
    done.catch(() => {});
    this.#tell({ run: { inTurns, holdMs } });
    await this.#unlessFailed(sleep(warmMs));
    const before = this.#reading();
    await this.#unlessFailed(sleep(measureMs));
    const after = this.#reading();
    this.#tell({ stop: true });
    const processes = await done;
    stopRelaying();
    return {
      window: { from: before.at, to: after.at },
      clientMicros: difference(before.client, after.client),
      serverMicros: difference(before.server, after.server),
      processes,
    };
  }

  async end() {
    this.#ending = true;
    await Promise.all(
      this.#children.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const exited = once(child, 'exit');
        if (child.connected) child.disconnect();
        const overdue = setTimeout(() => child.kill('SIGKILL'), PATIENCE.exit);
        await exited;
        clearTimeout(overdue);
      }),
    );
  }

  /** Tells each holder when the next one has the lock. That is while it is held, and so not measured. */
  #relayTurns() {
    let holder;
    const listeners = this.#children.map((child) => (message) => {
      if (!message.locked) return;
      if (holder && holder !== child) holder.send({ go: true });
      holder = child;
    });
    this.#children.forEach((child, index) => child.on('message', listeners[index]));
    return () => this.#children.forEach((child, index) => child.off('message', listeners[index]));
  }

  #tell(message) {
    for (const child of this.#children) child.send(message);
  }

  /** Resolves to what each of them says under this word, `later` and its patience from now at most. */
  async #all(word, later = 0) {
    const overdue = new AbortController();
    const late = async () => {
      await sleep(later + PATIENCE[word], undefined, { signal: overdue.signal });
      throw new Error(`some processes were not "${word}" after ${PATIENCE[word]} ms`);
    };
    const said = this.#children.map(
      (child) =>
        new Promise((resolve) => {
          child.on('message', function listener(message) {
            if (!(word in message)) return;
            child.off('message', listener);
            resolve(message[word]);
          });
        }),
    );
    try {
      return await this.#unlessFailed(Promise.race([Promise.all(said), late()]));
    } finally {
      overdue.abort();
    }
  }

  #unlessFailed(promise) {
    return Promise.race([promise, this.#failure.then(() => promise)]);
  }

  #reading() {
    return {
      client: totalCpu(this.#children.map(({ pid }) => pid)),
      server: totalCpu(this.#serverPids),
      at: Number(process.hrtime.bigint()) / 1e6,
    };
  }
}

/** Of all these processes, or null if it cannot be had of each of them. */
function totalCpu(pids) {
  const all = pids.map(processCpu);
  return all.length === 0 || all.includes(null) ? null : all.reduce((sum, one) => sum + one, 0);
}

function difference(before, after) {
  return before === null || after === null ? null : after - before;
}

module.exports = { Crowd };

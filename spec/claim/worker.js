/*
 * A worker-process.js, seen from the spec: what it says, how it ends, and the signals that it gets.
 */
'use strict';

const { fork } = require('node:child_process');
const { once } = require('node:events');

const PROCESS = require.resolve('./worker-process');
const working = new Set();

class Worker {
  static start(way, args) {
    return new Worker(fork(PROCESS, [way, JSON.stringify(args)], { silent: true }));
  }

  /** Kills whatever a spec has left working. */
  static async killAll() {
    await Promise.all([...working].map((worker) => worker.kill()));
  }

  #child;
  #said = [];
  #listener;
  #stderr = '';

  constructor(child) {
    this.#child = child;
    working.add(this);
    child.stderr.on('data', (text) => (this.#stderr += text));
    child.stdout.resume();
    child.on('message', (value) => {
      this.#said.push(value);
      this.#listener?.();
    });
    /** Resolves with `{ code, signal }`. */
    this.ended = once(child, 'exit').then(([code, signal]) => {
      working.delete(this);
      this.end = { code, signal };
      // Messages may still be on their way out of the channel.
      setImmediate(() => this.#listener?.());
      return this.end;
    });
  }

  /** The next thing that it says. */
  async next() {
    while (this.#said.length === 0) {
      if (this.end) {
        throw new Error(`it ended with ${JSON.stringify(this.end)}: ${this.#stderr}`);
      }
      await new Promise((resolve) => (this.#listener = resolve));
    }
    return this.#said.shift();
  }

  signal(name) {
    this.#child.kill(name);
  }

  async kill() {
    if (!this.end) this.#child.kill('SIGKILL');
    await this.ended;
  }
}

module.exports = { Worker };

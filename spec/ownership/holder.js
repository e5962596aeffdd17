'use strict';
/*
 * A process of its own that locks, saves and releases one document when told to, and that can be stopped, continued
 * and killed by signals. It runs this plugin or the original package, with the true clock or a false one.
 */

const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');

const PROCESS = path.join(__dirname, 'holder-process.js');
const running = new Set();

class Holder {
  /**
   * @param {object} options `uri`; `original` (true: the original package, on Mongoose 6); `mongoose` ('6' to '9'); `options` of
   *   the plugin; `schemaOptions`; `clock` (e.g. '+5m': the process runs under faketime, which must be installed)
   */
  static async start({ clock, original, mongoose = original ? '6' : undefined, ...rest }) {
    const child = spawn(process.execPath, [PROCESS], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      serialization: 'advanced',
      env: {
        ...process.env,
        ...(mongoose ? { MONGOOSE: mongoose } : {}),
        ...(clock ? clockVariables(clock) : {}),
      },
    });
    const holder = new Holder(child);
    running.add(holder);
    await holder.call('open', { original, ...rest });
    return holder;
  }

  /** Kills whatever a spec has left running. */
  static async killAll() {
    await Promise.all([...running].map((holder) => holder.kill()));
  }

  #child;
  #calls = new Map();
  #last = 0;

  constructor(child) {
    this.#child = child;
    child.on('message', ({ call, value, error }) => {
      const { resolve, reject } = this.#calls.get(call);
      this.#calls.delete(call);
      if (error) reject(Object.assign(new Error(error.message), error));
      else resolve(value);
    });
    child.once('exit', (code, signal) => {
      running.delete(this);
      const error = new Error(`the holder's process ended with ${signal ?? code}`);
      for (const { reject } of this.#calls.values()) reject(error);
    });
  }

  /** Does one of the verbs of holder-process.js there; resolves to what it returned. */
  call(verb, ...args) {
    this.#last += 1;
    const call = this.#last;
    return new Promise((resolve, reject) => {
      this.#calls.set(call, { resolve, reject });
      this.#child.send({ call, verb, args });
    });
  }

  signal(name) {
    this.#child.kill(name);
  }

  async kill() {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await gone;
  }
}

/**
 * The environment in which a process has a wrong clock. The program faketime is asked for it and not put before the
 * process, since it would stay there as its parent and get the signals that are meant for the process.
 */
function clockVariables(clock) {
  const script = 'JSON.stringify([process.env.LD_PRELOAD, process.env.DYLD_INSERT_LIBRARIES])';
  const [preload, insert] = JSON.parse(
    execFileSync('faketime', ['-f', clock, process.execPath, '-p', script], { encoding: 'utf8' }),
  );
  return {
    ...(preload ? { LD_PRELOAD: preload } : {}),
    ...(insert ? { DYLD_INSERT_LIBRARIES: insert } : {}),
    FAKETIME: clock,
    // A clock that is set wrong still goes on as the machine's monotonic clock does.
    FAKETIME_DONT_FAKE_MONOTONIC: '1',
  };
}

module.exports = { Holder, clockVariables };

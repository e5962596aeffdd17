'use strict';
/*
 * The processes of a trial as their parent sees them: starts them, sends them signals, starts a killed one again, and
 * tells in the end which journals were cut off by a kill. It judges nothing.
 */

const { spawn } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');
const { clockVariables } = require('../ownership/holder');

const PROCESS = path.join(__dirname, 'locker-process.js');
/** A process that has not come to its end by then never will. */
const END_MS = 60_000;

class Locker {
  #setup;
  #child;
  #generation = 0;
  #clock;
  #mongoose;
  #isStopped = false;

  /**
   * @param {object} setup what locker-process.js reads, without `name`, `journal` and `seed`
   * @param {object} own `name`; `mongoose` ('6' to '9'); `clock` (undefined: the true one); `directory` for the journals; `random`
   * @param {Set<string>} killed gets the names of the journals that end with a kill
   */
  constructor(setup, own, killed) {
    this.#setup = setup;
    this.#clock = own.clock ? clockVariables(own.clock) : {};
    this.#mongoose = own.mongoose;
    this.name = own.name;
    this.directory = own.directory;
    this.random = own.random;
    this.killed = killed;
    /** About how many locks it was granted. */
    this.acquisitions = 0;
  }

  get isStopped() {
    return this.#isStopped;
  }

  /** The journal of the process that runs now. */
  get journal() {
    return `${this.name}-${this.#generation}.jsonl`;
  }

  /** Starts a process; resolves when it is connected. */
  async start() {
    this.#generation += 1;
    const name = `${this.name}-${this.#generation}`;
    const setup = {
      ...this.#setup,
      name,
      journal: path.join(this.directory, this.journal),
      seed: Math.floor(this.random.next() * 2 ** 32),
    };
    this.#child = spawn(process.execPath, [PROCESS], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: {
        ...process.env,
        MONGOOSE: this.#mongoose,
        ...this.#clock,
        LOCKER: JSON.stringify(setup),
      },
    });
    this.#child.on('message', (message) => {
      if (typeof message === 'number') this.acquisitions += message;
    });
    // A process that is killed while it is told something is none of our concern.
    this.#child.on('error', () => {});
    await Promise.race([once(this.#child, 'message'), once(this.#child, 'exit')]);
  }

  get #isRunning() {
    return this.#child?.exitCode === null && this.#child.signalCode === null;
  }

  /** SIGKILL in the middle of whatever it does, and a new process after a moment. */
  async killAndReplace() {
    await this.kill();
    await this.start();
  }

  async kill() {
    if (!this.#isRunning) return;
    this.killed.add(this.journal);
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await gone;
    this.#isStopped = false;
  }

  stop() {
    this.#isStopped = true;
    this.#child.kill('SIGSTOP');
  }

  proceed() {
    this.#isStopped = false;
    this.#child.kill('SIGCONT');
  }

  /** The next rounds keep the event loop busy while they hold. */
  busy() {
    if (this.#child.connected) this.#child.send('busy', () => {});
  }

  /** Lets it finish what it does; false if it never did, and had to be killed. */
  async end() {
    if (!this.#isRunning) return true;
    this.proceed();
    const gone = once(this.#child, 'exit').then(() => true);
    if (this.#child.connected) this.#child.send('stop', () => {});
    let timer;
    const tooLate = new Promise((resolve) => {
      timer = setTimeout(resolve, END_MS, false);
    });
    const ended = await Promise.race([gone, tooLate]);
    clearTimeout(timer);
    // Not noted as killed: that it hangs is for the checker to find.
    if (!ended) this.#child.kill('SIGKILL');
    await gone;
    return ended;
  }

  /** Sends SIGKILL and waits for nothing. */
  killNow() {
    this.#child?.kill('SIGKILL');
  }
}

module.exports = { Locker };

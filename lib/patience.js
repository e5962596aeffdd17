/*
 * Owns how long a caller is willing to wait: a time, and an AbortSignal that ends it. The waiting itself is native.
 */
'use strict';

const { begin } = require('./client');

/** The promise, or a rejection with the signal's reason if it is aborted first. */
function orAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    const done = () => signal.removeEventListener('abort', onAbort);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.finally(done).then(resolve, reject);
  });
}

class Patience {
  #start = performance.now();
  #wait;
  #signal;

  /** Begins now: `wait` milliseconds, or Infinity, and until `signal` is aborted, if there is one. */
  constructor(wait, signal) {
    this.#wait = wait;
    this.#signal = signal;
  }

  /**
   * Starts a native call with the milliseconds that are left; `start` gives what cancels it. What is won when nobody waits
   * any more is let go.
   */
  begin(call, start, letGo) {
    this.#signal?.throwIfAborted();
    const left = Math.max(0, this.#wait - (performance.now() - this.#start));
    let waiting;
    const done = begin(call, (number) => {
      waiting = start(number, left);
    });
    if (!this.#signal) return done;
    const cancel = () => waiting?.cancel();
    this.#signal.addEventListener('abort', cancel, { once: true });
    const settled = () => {
      this.#signal.removeEventListener('abort', cancel);
      if (this.#signal.aborted) letGo();
    };
    done.then(settled, settled);
    return orAborted(done, this.#signal);
  }
}

module.exports = { Patience, orAborted };

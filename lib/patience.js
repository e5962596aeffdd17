/*
 * Owns how long a caller is willing to wait: a time, and an AbortSignal that ends it. The waiting itself is native.
 */
'use strict';

const { begin } = require('./client');

/** AbortSignal -> what to do when it is aborted: one listener, however many wait, or Node would warn of a leak. */
const listening = new WeakMap();

/** Calls `then` when the signal is aborted; gives what forgets about it. */
function whenAborted(signal, then) {
  let heard = listening.get(signal);
  if (!heard) {
    const reactions = new Set();
    const listener = () => {
      listening.delete(signal);
      for (const react of reactions) react();
    };
    heard = { reactions, listener };
    listening.set(signal, heard);
    signal.addEventListener('abort', listener, { once: true });
  }
  const { reactions, listener } = heard;
  // An object of its own: the same function may be given twice.
  const react = () => then();
  reactions.add(react);
  return () => {
    if (!reactions.delete(react) || reactions.size > 0 || listening.get(signal) !== heard) return;
    listening.delete(signal);
    signal.removeEventListener('abort', listener);
  };
}

class Patience {
  #start = performance.now();
  #wait;
  #signal;

  /** Begins now: `wait` milliseconds, or Infinity, and until `signal` is aborted, if there is one. */
  constructor(wait, signal) {
    this.#wait = wait;
    this.#signal = signal;
    this.#throwIfAborted();
  }

  /** The promise, or a rejection with the signal's reason if it is aborted first. */
  orAborted(promise) {
    const signal = this.#signal;
    if (!signal) return promise;
    return new Promise((resolve, reject) => {
      const forget = whenAborted(signal, () => reject(signal.reason));
      promise.finally(forget).then(resolve, reject);
    });
  }

  /**
   * Starts a native call with the milliseconds that are left; `start` gives what cancels it. The lease of a lock that comes
   * after the signal was aborted goes to `abandon`; one that comes before is the caller's, whatever the signal does then.
   */
  begin(call, start, abandon) {
    this.#throwIfAborted();
    const signal = this.#signal;
    const left = Math.max(0, this.#wait - (performance.now() - this.#start));
    let waiting;
    const startWaiting = (number) => {
      waiting = start(number, left);
    };
    if (!signal) return begin(call, startWaiting);
    return new Promise((resolve, reject) => {
      let isAborted = false;
      const forget = whenAborted(signal, () => {
        isAborted = true;
        reject(signal.reason);
        waiting?.cancel();
      });
      const { read } = call;
      call.read = (bytes, lease) => {
        forget();
        return isAborted ? abandon(lease, bytes) : read(bytes, lease);
      };
      begin(call, startWaiting).finally(forget).then(resolve, reject);
    });
  }

  #throwIfAborted() {
    if (this.#signal?.aborted) throw this.#signal.reason;
  }
}

module.exports = { Patience };

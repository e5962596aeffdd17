/*
 * Owns the Lock: the public face of an acquisition, what a document that holds a lock shows of it as `$lock`. It
 * believes the native side, which knows the clock; it never asks the server.
 */
'use strict';

/** One acquisition of a document's lock, as its holder sees it. */
class Lock {
  #acquisition;

  constructor(acquisition) {
    this.#acquisition = acquisition;
  }

  get held() {
    return this.remaining > 0;
  }

  get remaining() {
    return this.#acquisition.lease.remaining;
  }

  get expires() {
    return new Date(this.#acquisition.lease.until);
  }

  get since() {
    return new Date(this.#acquisition.lease.since);
  }

  get token() {
    return this.#acquisition.lease.token;
  }

  get label() {
    return this.#acquisition.model.target.label;
  }

  get signal() {
    return this.#acquisition.signal;
  }

  get filter() {
    const { key, condition } = this.#acquisition;
    return { _id: key._id, ...condition };
  }

  assertHeld() {
    if (this.held) return;
    const { lease } = this.#acquisition;
    throw this.#acquisition.lost(lease.released ? 'released' : lease.reason);
  }

  toJSON() {
    const { held, remaining, expires, since, token, label } = this;
    return { held, remaining, expires, since, token, label };
  }

  [Symbol.for('nodejs.util.inspect.custom')](_depth, options, inspect) {
    return `Lock ${inspect(this.toJSON(), options)}`;
  }
}

module.exports = { Lock };

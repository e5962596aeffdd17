/*
 * Owns one acquisition: the lease that the server granted, and the commands that only its holder can send. What the
 * user sees of it is the Lock.
 */
'use strict';

const { begin, watch } = require('./client');
const { LockError } = require('./errors');
const { Lock } = require('./lock');

/** Keeps an acquisition for as long as its signal is in use: a lock is not kept alive for nobody. */
const ACQUISITION = Symbol('acquisition');

/** The longest delay of a Node timer. */
const LONGEST_DELAY = 2 ** 31 - 1;

class Acquisition {
  #controller;

  /**
   * @param model the LockedModel that it was made through
   * @param key what finds the document, as it was then
   * @param lease the native lease, which knows the clock and what the server has written down
   */
  constructor(model, key, lease) {
    this.model = model;
    this.key = key;
    this.lease = lease;
    this.lock = new Lock(this);
  }

  /**
   * The condition that a write must meet so that nobody else has taken the lock since. The token belongs to it: a stray
   * duplicate of the lock command may take the lock once more with the same lease, after others have had it.
   */
  get condition() {
    const { settings, mongo } = this.model;
    return {
      [`${settings.by}.lease`]: new mongo.BSON.ObjectId(this.lease.id),
      [`${settings.by}.token`]: this.lease.token,
      $expr: { $eq: [`$${settings.path}`, `$${settings.by}.until`] },
    };
  }

  /** Aborted when the lock is lost; made at first use. */
  get signal() {
    if (!this.#controller) {
      this.#controller = new AbortController();
      const { signal } = this.#controller;
      Object.defineProperty(signal, ACQUISITION, { value: this });
      watch(this);
      this.#awaitDeadline();
    }
    return this.#controller.signal;
  }

  /** The lock is lost: tells whoever listens, once. */
  onLoss() {
    if (!this.#controller || this.#controller.signal.aborted || this.lease.released) return;
    this.#controller.abort(this.lost(this.lease.reason));
  }

  #awaitDeadline() {
    const { remaining } = this.lease;
    if (remaining === 0) {
      if (!this.lease.letGo) this.onLoss();
      return;
    }
    const acquisition = new WeakRef(this);
    const delay = Math.min(Math.ceil(remaining), LONGEST_DELAY);
    setTimeout(() => acquisition.deref()?.#awaitDeadline(), delay).unref();
  }

  /** Releases it: the fresh document, or null when it was lost. */
  async release(trace) {
    return await this.#release(trace, (bytes) => this.model.read(bytes));
  }

  /** Releases it for one who does not want the document: it is not even sent. */
  async letGo(trace) {
    await this.#release(trace, () => undefined, true);
  }

  async #release(trace, read, brief) {
    const { model, lease } = this;
    const opened = model.open('release');
    const collection = opened instanceof Promise ? await opened : opened;
    const subject = model.subject(this.key);
    const call = { trace, mongo: model.mongo, read };
    return await begin(call, (number) => collection.release(number, subject, lease, brief));
  }

  /** Prolongs it: the fresh document, or null when it is not held any more. */
  async extend(duration, trace) {
    const collection = await this.model.open('extend');
    const subject = this.model.subject(this.key);
    const { model, lease } = this;
    const call = { trace, mongo: model.mongo, read: (bytes) => model.read(bytes) };
    return await begin(call, (number) => collection.extend(number, subject, lease, duration));
  }

  /** Asks the server whether the document is there and another has taken its lock. */
  async isOthers(trace) {
    const { model } = this;
    const collection = await model.open('save');
    const subject = model.mongo.BSON.serialize({ key: this.key, set: {} });
    const read = (bytes) => model.mongo.BSON.deserialize(bytes);
    const call = { trace, mongo: model.mongo, read };
    const state = await begin(call, (number) => collection.inspect(number, subject, this.lease));
    return state !== null && !state.mine;
  }

  lost(why, cause) {
    const { Model } = this.model;
    return new LockError(
      'ERR_LOCK_LOST',
      `the lock on ${Model.modelName} ${this.key._id} is lost: ${why}`,
      cause && { cause },
    );
  }
}

module.exports = { Acquisition };

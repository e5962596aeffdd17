/*
 * Owns `Model.claims`: documents claimed one after the other, a little ahead of those who handle them, for as long as anybody
 * does. Each is released when its handling is over.
 */
'use strict';

const { checkClaimsOptions, checkDuration, checkFilter, checkFunction } = require('./arguments');
const { claim } = require('./claim');
const { releaseUnlessDone, acquisitionOf } = require('./document');

const END = { done: true, value: undefined };

class Claims {
  #claim;
  #trace;
  #concurrency;
  /** Claimed, and nobody's work yet. */
  #ready = [];
  /** How many are being handled. */
  #handled = 0;
  /** Those who wait for one: functions that take a document, or nothing at the end. */
  #takers = [];
  /** How many loops there are over it. */
  #loops = 0;
  #isClaiming = false;
  #stop = new AbortController();
  #failure;
  #signal;
  #onAbort = () => this.#end();
  /** Resolves when what nobody will handle has been released. */
  #ended;

  /**
   * @param {(limit: number, signal: AbortSignal) => Promise<object[]>} claimSome waits for one document at least
   * @param trace of whoever asked for them
   */
  constructor(claimSome, { concurrency, signal }, trace) {
    this.#claim = claimSome;
    this.#trace = trace;
    this.#concurrency = concurrency;
    this.#signal = signal;
    if (signal?.aborted) this.#end();
    else signal?.addEventListener('abort', this.#onAbort, { once: true });
  }

  /** One loop over the documents; several share them. */
  [Symbol.asyncIterator]() {
    this.#loops += 1;
    let current;
    let isOpen = true;
    let turn = Promise.resolve();
    const handled = async () => {
      if (!current) return;
      const doc = current;
      current = undefined;
      await this.#release(doc);
      // Not before: there is room for another one when this one is not locked any more.
      this.#handled -= 1;
      this.#fill();
    };
    const leave = async () => {
      if (isOpen) this.#loops -= 1;
      isOpen = false;
      if (this.#loops === 0) this.#end();
      await this.#ended;
      return END;
    };
    const step = async () => {
      await handled();
      if (!isOpen) return END;
      current = await this.#take();
      if (current && isOpen) return { done: false, value: current };
      // Left while it was waited for: nobody is there to handle it.
      await handled();
      await leave();
      if (this.#failure) throw this.#failure;
      return END;
    };
    return {
      // One after the other, should somebody ask for the next before there is one.
      next: () => (turn = turn.then(step, step)),
      return: async (value) => {
        await handled();
        return { ...(await leave()), value };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /** Handles up to `concurrency` documents at once, until it is stopped or `fn` fails. */
  async forEach(fn) {
    checkFunction(fn);
    let failure;
    const fail = (error) => {
      failure ??= { error };
      this.#end();
    };
    const loop = async () => {
      for await (const doc of this) {
        try {
          await fn(doc, doc.$lock);
        } catch (error) {
          // The first that fails is the one that is told, not the first whose document is released.
          fail(error);
          return;
        }
      }
    };
    const loops = Array.from({ length: this.#concurrency }, () => loop().catch(fail));
    await Promise.all(loops);
    if (failure) throw failure.error;
  }

  #take() {
    for (let doc; (doc = this.#ready.shift());) {
      // One that waited here for so long that it was lost is another's.
      if (doc.$lock.held) {
        this.#handled += 1;
        this.#fill();
        return doc;
      }
    }
    if (this.#ended) return undefined;
    const taken = new Promise((resolve) => {
      this.#takers.push(resolve);
    });
    this.#fill();
    return taken;
  }

  /** Claims as many as there is room for; not one by one while there still are some. */
  async #fill() {
    const room = this.#concurrency - this.#handled - this.#ready.length;
    const isEnough = this.#ready.length > 0 && 2 * room < this.#concurrency;
    if (this.#isClaiming || this.#ended || room === 0 || isEnough) return;
    this.#isClaiming = true;
    try {
      const claimed = await this.#claim(room, this.#stop.signal);
      if (this.#ended) {
        for (const doc of claimed) this.#release(doc);
        return;
      }
      this.#ready.push(...claimed);
    } catch (error) {
      if (!this.#ended) this.#fail(error);
      return;
    } finally {
      this.#isClaiming = false;
    }
    while (this.#takers.length > 0 && this.#ready.length > 0) {
      this.#handled += 1;
      this.#takers.shift()(this.#ready.shift());
    }
    this.#fill();
  }

  #fail(error) {
    this.#failure = error;
    this.#end();
  }

  #end() {
    if (this.#ended) return;
    this.#signal?.removeEventListener('abort', this.#onAbort);
    const rest = this.#ready.splice(0);
    this.#ended = Promise.all(rest.map((doc) => this.#release(doc)));
    this.#stop.abort();
    for (const taker of this.#takers.splice(0)) taker(undefined);
  }

  async #release(doc) {
    // What cannot be released lapses.
    await releaseUnlessDone(acquisitionOf(doc), this.#trace).catch(() => {});
  }
}

/** Claims without end; see Claims. */
function claims(Model, settings, trace, filter, duration, given) {
  const durationMs = checkDuration(duration);
  checkFilter(filter);
  const { each, concurrency, signal } = checkClaimsOptions(given, durationMs);
  const claimSome = (limit, stop) =>
    claim(Model, settings, trace, filter, duration, {
      ...each,
      limit,
      wait: Infinity,
      signal: stop,
    });
  return new Claims(claimSome, { concurrency, signal }, trace);
}

module.exports = { claims };

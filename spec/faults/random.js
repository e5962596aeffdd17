'use strict';
/*
 * Random numbers that come again with the same seed, so that what a nemesis did can be repeated. The interleaving of
 * processes cannot: a seed makes a failure likely again, not certain.
 */

class Random {
  #state;

  /** @param {number} seed a whole number below 2 ** 32 */
  constructor(seed) {
    this.#state = seed >>> 0;
  }

  /** A number from 0 up to 1 (splitmix32). */
  next() {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  }

  /** A number from `low` up to `high`. */
  between(low, high) {
    return low + this.next() * (high - low);
  }

  pick(list) {
    return list[Math.floor(this.next() * list.length)];
  }

  chance(probability) {
    return this.next() < probability;
  }

  /** Another source, which depends on this one and on nothing that is drawn from it later. */
  fork() {
    return new Random(Math.floor(this.next() * 2 ** 32));
  }
}

module.exports = { Random };

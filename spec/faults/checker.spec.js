'use strict';
/*
 * The checker of the fault suite, fed with journals that people wrote: sound ones, which it must pass, and one for each
 * fault that it has to find. A checker that cannot fail proves nothing.
 */

const assert = require('node:assert/strict');
const { check } = require('./checker');

const DURATION = 400;
const PATIENCE = 5000;

/** The journal of one process, as a locker writes it; every step takes a millisecond. */
class Story {
  entries = [];
  #name;
  #calls = 0;

  constructor(name, clock) {
    this.#name = name;
    this.clock = clock;
  }

  #call(verb, rest, answer) {
    this.#calls += 1;
    const id = `${this.#name}.${this.#calls}`;
    this.entries.push({ e: 'call', id, verb, ...rest, t: this.clock.now() });
    if (answer) this.entries.push({ e: 'answer', id, t: this.clock.now(), ...answer });
    return id;
  }

  lock(doc, token, n, last, more) {
    const lease = `lease-${this.#name}-${token}`;
    const since = this.clock.time;
    const answer = { outcome: 'granted', n, last, lease, token, since, ...more };
    return this.#call('lock', { doc }, answer);
  }

  refused(doc) {
    return this.#call('lock', { doc }, { outcome: 'refused' });
  }

  save(acquisition, to, answer = { outcome: 'saved' }, step = 1) {
    const writer = `${acquisition}/${step}`;
    this.#call('save', { acquisition, to, writer }, answer);
    return writer;
  }

  held(acquisition, from, to) {
    this.entries.push({ e: 'held', acquisition, from, to });
  }

  release(acquisition, answer = { outcome: 'released' }) {
    return this.#call('release', { acquisition }, answer);
  }

  end() {
    return { name: `${this.#name}.jsonl`, entries: [...this.entries, { e: 'end' }] };
  }
}

function begin() {
  const clock = {
    time: 0,
    now() {
      this.time += 1;
      return this.time;
    },
  };
  return [new Story('a', clock), new Story('b', clock), clock];
}

/** Judges what two processes did with document 1. */
function judge([a, b], document, more = {}) {
  return check({
    journals: [a.end(), b.end()],
    documents: [{ _id: 1, ...document }],
    duration: DURATION,
    patience: PATIENCE,
    ...more,
  });
}

/** Two holders after each other, each adding one. */
function soundStory() {
  const [a, b, clock] = begin();
  const first = a.lock(1, 1, 0);
  const one = a.save(first, 1);
  a.held(first, clock.time - 1, clock.time);
  b.refused(1);
  a.release(first);
  const second = b.lock(1, 2, 1, one);
  const two = b.save(second, 2);
  b.held(second, clock.time - 1, clock.time);
  b.release(second);
  return { stories: [a, b], clock, first, second, two };
}

const kinds = (report) => [...new Set(report.violations.map(({ kind }) => kind))];

describe('the checker of the fault suite', function () {
  describe('passes', function () {
    it('holders that follow each other, and counts what they did', function () {
      const { stories, two } = soundStory();
      const report = judge(stories, { n: 2, last: two });
      assert.deepEqual(report.violations, []);
      assert.equal(report.operations, 7);
      assert.equal(report.acquisitions, 2);
      assert.equal(report.refusals, 1);
      assert.equal(report.takeovers, 0);
      assert.deepEqual(report.errors, {});
    });

    it('a write of unknown outcome, whether it was applied or not', function () {
      for (const applied of [true, false]) {
        const [a, b] = begin();
        const first = a.lock(1, 1, 0);
        const maybe = a.save(first, 1, { error: 'MongoNetworkError' });
        const second = b.lock(1, 2, applied ? 1 : 0, applied ? maybe : undefined);
        const last = b.save(second, applied ? 2 : 1);
        const report = judge([a, b], { n: applied ? 2 : 1, last });
        assert.deepEqual(report.violations, []);
        assert.deepEqual(report.errors, { MongoNetworkError: 1 });
        assert.equal(report.takeovers, 1);
      }
    });

    it('a write that the fence refused', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      const second = b.lock(1, 2, 0);
      const last = b.save(second, 1);
      a.save(first, 1, { outcome: 'lost' });
      assert.deepEqual(judge([a, b], { n: 1, last }).violations, []);
    });

    it('a call that its killed process did not live to see answered', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      a.save(first, 1, null);
      const journals = [{ name: 'a.jsonl', entries: a.entries }, b.end()];
      const killed = new Set(['a.jsonl']);
      assert.deepEqual(judge([a, b], { n: 0 }, { journals, killed }).violations, []);
    });

    it('locks that are renewed up to their release, or to the end of a killed process', function () {
      for (const isKilled of [true, false]) {
        const [a, b, clock] = begin();
        const first = a.lock(1, 1, 0);
        a.entries[0].renew = true;
        const { lease } = a.entries[1];
        clock.time = 9000;
        a.refused(2);
        if (!isKilled) a.release(first);
        const journals = [{ name: 'a.jsonl', entries: a.entries }, b.end()];
        const killed = new Set(['a.jsonl']);
        const see = (from) => [
          { from, documents: [{ _id: 1, n: 0, isLocked: true, lease, token: 1 }] },
        ];
        const judged = (from) =>
          judge([a, b], { n: 0 }, { journals, killed, sightings: see(from) });
        assert.deepEqual(kinds(judged(8000)), []);
        assert.deepEqual(kinds(judged(9050)), []);
        assert.deepEqual(kinds(judged(9000 + PATIENCE + 2 * DURATION)), ['stuck']);
      }
    });

    it('locks that are seen while they last, of known holders and of failed calls', function () {
      const { stories, two, first } = soundStory();
      const { lease, token } = stories[0].entries.find(
        ({ id, e }) => id === first && e === 'answer',
      );
      const sightings = [
        { from: 2, documents: [{ _id: 1, n: 0, isLocked: true, lease, token }] },
        { from: 9, documents: [{ _id: 1, n: 1, isLocked: true, lease: 'unknown', token: 7 }] },
        {
          from: 9 + DURATION,
          documents: [{ _id: 1, n: 2, isLocked: true, lease: 'unknown', token: 7 }],
        },
        { from: 9000, documents: [{ _id: 1, n: 2, isLocked: false, lease: 'unknown', token: 7 }] },
      ];
      assert.deepEqual(judge(stories, { n: 2, last: two }, { sightings }).violations, []);
    });
  });

  describe('finds', function () {
    it('two that believe to hold at one moment', function () {
      const { stories, two, first, second, clock } = soundStory();
      stories[0].held(first, 1, clock.time);
      stories[1].held(second, clock.time - 3, clock.time);
      const report = judge(stories, { n: 2, last: two });
      assert.deepEqual(kinds(report), ['overlap']);
      assert.equal(report.overlaps, 1);
    });

    it('turns that mix', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      const one = a.save(first, 1);
      const second = b.lock(1, 2, 1, one);
      b.save(second, 2);
      const last = a.save(first, 3, undefined, 2);
      const report = judge([a, b], { n: 3, last });
      assert.deepEqual(kinds(report), ['overlap', 'regression']);
    });

    it('a number that two wrote', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      const second = b.lock(1, 2, 0);
      b.save(second, 1);
      const last = a.save(first, 1);
      const report = judge([a, b], { n: 1, last });
      assert.deepEqual(kinds(report), ['lost', 'double']);
      assert.equal(report.lost, 2);
    });

    it('an acknowledged number that the counter does not have', function () {
      const { stories, two } = soundStory();
      const [a] = stories;
      const third = a.lock(1, 3, 2, two);
      a.save(third, 3);
      assert.deepEqual(kinds(judge(stories, { n: 2, last: two })), ['lost']);
    });

    it('an acknowledged number that is seen to be taken back for a while', function () {
      const { stories, two, clock } = soundStory();
      const sightings = [{ from: clock.time + 1, documents: [{ _id: 1, n: 1, isLocked: false }] }];
      assert.deepEqual(kinds(judge(stories, { n: 2, last: two }, { sightings })), ['lost']);
    });

    it('a number that nobody wrote', function () {
      const { stories, two } = soundStory();
      assert.deepEqual(kinds(judge(stories, { n: 3, last: two })), ['phantom']);
      assert.deepEqual(kinds(judge(stories, { n: 2, last: 'a.99/1' })), ['phantom']);
    });

    it('a write that was said to be refused and was applied', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      const last = a.save(first, 1, { outcome: 'lost' });
      assert.deepEqual(kinds(judge([a, b], { n: 1, last })), ['phantom']);
    });

    it('a holder that read what another had overwritten', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0);
      const maybe = a.save(first, 1, { error: 'MongoNetworkError' });
      const second = b.lock(1, 2, 0);
      b.save(second, 1);
      b.release(second);
      b.lock(1, 3, 1, maybe);
      assert.deepEqual(kinds(judge([a, b], { n: 1, last: maybe })), ['lost']);
    });

    it('a token that was given twice', function () {
      const [a, b] = begin();
      a.lock(1, 1, 0);
      b.lock(1, 1, 0);
      assert.deepEqual(kinds(judge([a, b], { n: 0 })), ['regression']);
    });

    it('a token that is lower than an earlier one', function () {
      const [a, b] = begin();
      a.lock(1, 2, 0);
      b.lock(1, 1, 0);
      assert.deepEqual(kinds(judge([a, b], { n: 0 })), ['regression']);
    });

    it('a lease that was granted twice', function () {
      const [a, b] = begin();
      a.lock(1, 1, 0, undefined, { lease: 'same' });
      b.lock(1, 2, 0, undefined, { lease: 'same' });
      assert.deepEqual(kinds(judge([a, b], { n: 0 })), ['regression']);
    });

    it('writes in another order than that of the tokens', function () {
      const [a, b] = begin();
      const first = a.lock(1, 1, 0, undefined, { since: 1 });
      const second = b.lock(1, 2, 0, undefined, { since: 1 });
      const one = b.save(second, 1);
      const last = a.save(first, 2);
      assert.ok(one);
      assert.deepEqual(kinds(judge([a, b], { n: 2, last })), ['regression']);
    });

    it('a call that was never answered, and one that was answered twice', function () {
      const { stories, two } = soundStory();
      const [a, b] = stories;
      a.release('a.1', null);
      b.entries.push({ e: 'answer', id: 'b.1', t: 100, outcome: 'refused' });
      const report = judge(stories, { n: 2, last: two });
      assert.deepEqual(kinds(report), ['twice', 'unanswered']);
      assert.equal(report.unanswered, 2);
    });

    it('a process that did not come to its end, and one that broke', function () {
      const { stories, two } = soundStory();
      const [a, b] = stories;
      b.entries.push({ e: 'crash', message: 'out of order' });
      const journals = [{ name: 'a.jsonl', entries: a.entries }, b.end()];
      const report = judge(stories, { n: 2, last: two }, { journals });
      assert.deepEqual(kinds(report), ['unanswered', 'crash']);
    });

    it('a lock that is seen after its release or after its time', function () {
      const { stories, two, first, clock } = soundStory();
      const { lease, token } = stories[0].entries.find(
        ({ id, e }) => id === first && e === 'answer',
      );
      const locked = { _id: 1, n: 2, isLocked: true };
      for (const sightings of [
        [{ from: clock.time + 150, documents: [{ ...locked, lease, token }] }],
        [
          { from: clock.time, documents: [{ ...locked, lease: 'unknown', token: 9 }] },
          {
            from: clock.time + DURATION + PATIENCE + 200,
            documents: [{ ...locked, lease: 'unknown', token: 9 }],
          },
        ],
      ]) {
        const report = judge(stories, { n: 2, last: two }, { sightings });
        assert.deepEqual(kinds(report), ['stuck']);
        assert.equal(report.stuck, 1);
      }
    });

    it('a document that cannot be locked any more', function () {
      const { stories, two } = soundStory();
      assert.deepEqual(kinds(judge(stories, { n: 2, last: two }, { unlockable: [1] })), ['stuck']);
    });
  });
});

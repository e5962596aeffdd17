'use strict';
/*
 * Judges a trial by its journals, by what the documents are in the end, and by what was seen of them on the way: a pure
 * function, no I/O. The counter of a document decides about writes: whoever wrote under the lock wrote the number after the
 * one that the holder before left, so that two holders at one moment show as a number written twice or as turns that mix.
 */

/** How far apart two processes' readings of one event may be. */
const SLACK_MS = 100;

/**
 * @param {object} trial
 * @param {{ name: string, entries: object[] }[]} trial.journals as locker-process.js writes them
 * @param {Set<string>} [trial.killed] names of the journals that end with a kill
 * @param {{ _id: number, n: number, last?: string }[]} trial.documents in the end
 * @param {{ from: number, to: number, documents: object[] }[]} [trial.sightings] the documents with `locked`, `lease`, `token` as
 *   they were at some moment between `from` and `to`
 * @param {number[]} [trial.unlockable] documents that could not be locked when all was over
 * @param {number} trial.duration of each lock, in milliseconds
 * @param {number} trial.patience for how long a call is repeated before it fails
 * @param {number} [trial.late] for how long the network may hold a message back: one attempt's duplicate of a lock that was
 *   granted to another prolongs it, if it is still held then
 */
function check({ killed = new Set(), sightings = [], unlockable = [], ...trial }) {
  const report = new Report();
  const calls = readCalls(trial.journals, killed, report);
  const acquisitions = readAcquisitions(calls, trial.journals);
  checkTokens(acquisitions, report);
  checkBeliefs(acquisitions, report);
  checkWrites(calls, acquisitions, trial.documents, report);
  checkSightings(calls, acquisitions, sightings, trial, report);
  for (const _id of unlockable) report.violate('stuck', _id, 'could not be locked in the end');
  return report.result(calls, acquisitions);
}

class Report {
  violations = [];

  violate(kind, doc, text) {
    this.violations.push({ kind, doc, text });
  }

  result(calls, acquisitions) {
    const count = (kind) => this.violations.filter((each) => each.kind === kind).length;
    const errors = {};
    let refusals = 0;
    for (const { verb, answer } of calls.values()) {
      if (answer?.error) errors[answer.error] = (errors[answer.error] ?? 0) + 1;
      if (verb === 'lock' && answer?.outcome === 'refused') refusals += 1;
      if (verb === 'save' && answer?.outcome === 'lost') {
        errors.ERR_LOCK_LOST = (errors.ERR_LOCK_LOST ?? 0) + 1;
      }
    }
    return {
      operations: calls.size,
      acquisitions: acquisitions.size,
      takeovers: takeovers(acquisitions),
      refusals,
      errors,
      // A number that two wrote is an update lost, by two who held at one moment.
      overlaps: count('overlap') + count('double'),
      regressions: count('regression'),
      lost: count('lost') + count('double') + count('phantom'),
      stuck: count('stuck'),
      unanswered: count('unanswered') + count('twice') + count('crash'),
      violations: this.violations,
    };
  }
}

/** Calls by their id, each with its one answer. */
function readCalls(journals, killed, report) {
  const calls = new Map();
  for (const { name, entries } of journals) {
    for (const entry of entries) {
      if (entry.e === 'call') {
        calls.set(entry.id, { ...entry, journal: name });
      } else if (entry.e === 'answer') {
        const call = calls.get(entry.id);
        if (call.answer)
          report.violate('twice', call.doc, `${call.verb} ${call.id} answered twice`);
        call.answer ??= entry;
      } else if (entry.e === 'crash') {
        report.violate('crash', undefined, `${name}: ${entry.message}`);
      }
    }
    const ended = entries.at(-1)?.e === 'end';
    if (!ended && !killed.has(name)) {
      report.violate('unanswered', undefined, `${name} never came to its end`);
    }
  }
  for (const call of calls.values()) {
    if (!call.answer && !killed.has(call.journal)) {
      report.violate('unanswered', call.doc, `${call.verb} ${call.id} was never answered`);
    }
  }
  return calls;
}

/** Granted locks by the id of their call, with what was done under them. */
function readAcquisitions(calls, journals) {
  const acquisitions = new Map();
  for (const call of calls.values()) {
    if (call.verb === 'lock' && call.answer?.outcome === 'granted') {
      const { doc, renew, answer } = call;
      acquisitions.set(call.id, { ...answer, doc, renew, prolonged: answer.t });
    }
  }
  for (const { acquisition: id, verb, answer, t } of calls.values()) {
    const acquisition = acquisitions.get(id);
    if (verb === 'release' && answer?.outcome === 'released') acquisition.releasedAt = answer.t;
    if (verb === 'release') acquisition.stopsAt = t;
    if (verb === 'extend') acquisition.prolonged = answer?.t ?? t;
    if (verb === 'extend' && (!answer || answer.error)) acquisition.isOpen = true;
  }
  for (const { entries } of journals) {
    const last = entries.findLast(({ t }) => t !== undefined)?.t;
    for (const { e, id, acquisition, from, to } of entries) {
      if (e === 'held') acquisitions.get(acquisition).held = { from, to };
      const renewed = e === 'answer' && acquisitions.get(id);
      if (!renewed?.renew) continue;
      // Renewed up to its release, or to the end of its process; the last one may come in late.
      renewed.prolonged = renewed.stopsAt ?? last;
      renewed.isOpen = true;
    }
  }
  return acquisitions;
}

/** Acquisitions of each document. */
function byDocument(acquisitions) {
  const groups = new Map();
  for (const acquisition of acquisitions.values()) {
    if (!groups.has(acquisition.doc)) groups.set(acquisition.doc, []);
    groups.get(acquisition.doc).push(acquisition);
  }
  return groups;
}

function takeovers(acquisitions) {
  let count = 0;
  for (const group of byDocument(acquisitions).values()) {
    const sorted = group.toSorted((a, b) => (a.token ?? a.t) - (b.token ?? b.t));
    count += sorted.filter((_, i) => i > 0 && sorted[i - 1].releasedAt === undefined).length;
  }
  return count;
}

/** Tokens are given once and grow with time; so are leases. The original has none. */
function checkTokens(acquisitions, report) {
  const leases = new Set();
  for (const [doc, group] of byDocument(acquisitions)) {
    const sorted = group
      .filter(({ token }) => token !== undefined)
      .toSorted((a, b) => a.token - b.token);
    for (const [i, acquisition] of sorted.entries()) {
      const { lease, token, since } = acquisition;
      if (leases.has(lease)) report.violate('regression', doc, `lease ${lease} was granted twice`);
      leases.add(lease);
      const earlier = sorted[i - 1];
      if (!earlier) continue;
      if (token === earlier.token) {
        report.violate(
          'regression',
          doc,
          `token ${token} was given to ${earlier.id} and ${acquisition.id}`,
        );
      } else if (since < earlier.since) {
        report.violate('regression', doc, `token ${token} is older than ${earlier.token}`);
      }
    }
  }
}

/** At no moment may two processes believe that they hold the same document. */
function checkBeliefs(acquisitions, report) {
  for (const [doc, group] of byDocument(acquisitions)) {
    const sorted = group.filter(({ held }) => held).toSorted((a, b) => a.held.from - b.held.from);
    let last;
    for (const acquisition of sorted) {
      if (last && acquisition.held.from <= last.held.to) {
        const both = last.held.to - acquisition.held.from;
        report.violate(
          'overlap',
          doc,
          `${last.id} (token ${last.token}) and ${acquisition.id} (token ${acquisition.token}) ` +
            `both held for ${both.toFixed(3)} ms`,
        );
      }
      if (!last || acquisition.held.to > last.held.to) last = acquisition;
    }
  }
}

/** Every number up to the last was written once, by one holder after the other. */
function checkWrites(calls, acquisitions, documents, report) {
  const writes = new Map(documents.map(({ _id }) => [_id, new Map()]));
  const byWriter = new Map();
  for (const call of calls.values()) {
    if (call.verb !== 'save') continue;
    const { doc } = acquisitions.get(call.acquisition);
    const write = { ...call, doc, isAcknowledged: call.answer?.outcome === 'saved' };
    // Refused by the fence: not written, for certain.
    write.isRefused = call.answer?.outcome === 'lost';
    byWriter.set(call.writer, write);
    const numbers = writes.get(doc);
    if (!numbers.has(write.to)) numbers.set(write.to, []);
    numbers.get(write.to).push(write);
  }
  const sources = findSources(acquisitions, documents, byWriter, writes, report);
  for (const { _id, n } of documents) {
    checkNumbers(_id, n, writes.get(_id), report);
    checkTurns(_id, n, { numbers: writes.get(_id), sources, acquisitions }, report);
  }
}

/** Who wrote the numbers that were read: document/number -> writer. Whatever was read must have been written. */
function findSources(acquisitions, documents, byWriter, writes, report) {
  const sources = new Map();
  const readings = [
    ...[...acquisitions.values()].map(({ doc, n, last }) => ({ doc, n, last })),
    ...documents.map(({ _id, n, last }) => ({ doc: _id, n, last })),
  ];
  for (const { doc, n, last } of readings) {
    if (n === 0) continue;
    const write = byWriter.get(last);
    if (!write || write.doc !== doc || write.to !== n) {
      report.violate('phantom', doc, `${n} was read as written by ${last}, who did not write it`);
    } else if (write.isRefused) {
      report.violate(
        'phantom',
        doc,
        `${n} was read, but its writer ${last} was told that it is lost`,
      );
    } else {
      sources.set(`${doc}/${n}`, last);
      for (const other of writes.get(doc).get(n)) {
        if (other.isAcknowledged && other !== write) {
          report.violate('lost', doc, `${n} of ${other.writer} was acknowledged, but is ${last}'s`);
        }
      }
    }
  }
  return sources;
}

function checkNumbers(doc, final, numbers, report) {
  for (let number = 1; number <= final; number++) {
    const candidates = numbers.get(number) ?? [];
    const acknowledged = candidates.filter((write) => write.isAcknowledged);
    if (acknowledged.length > 1) {
      const writers = acknowledged.map(({ writer }) => writer).join(' and ');
      report.violate('double', doc, `${number} was written by ${writers}`);
    } else if (candidates.every((write) => write.isRefused)) {
      report.violate('phantom', doc, `${number} was written by nobody`);
    }
  }
  for (const [number, candidates] of numbers) {
    if (number > final && candidates.some((write) => write.isAcknowledged)) {
      report.violate('lost', doc, `${number} was acknowledged, but the counter ends at ${final}`);
    }
  }
}

/** In the order of the numbers, holders follow each other: their turns do not mix, and their tokens grow. */
function checkTurns(doc, final, { numbers, sources, acquisitions }, report) {
  const done = new Set();
  let current;
  let highest = 0;
  for (let number = 1; number <= final; number++) {
    const source = sources.get(`${doc}/${number}`);
    const write = (numbers.get(number) ?? []).find(
      (each) => each.isAcknowledged || each.writer === source,
    );
    if (!write || write.acquisition === current) continue;
    if (done.has(write.acquisition)) {
      report.violate('overlap', doc, `${write.writer} wrote ${number} after another had its turn`);
    }
    done.add(current);
    current = write.acquisition;
    const { token } = acquisitions.get(current);
    if (token === undefined) continue;
    if (token <= highest) {
      report.violate(
        'regression',
        doc,
        `${number} was written with token ${token} after ${highest}`,
      );
    }
    highest = Math.max(highest, token);
  }
}

/** No lock is seen after its release or long after its time, and no acknowledged number is taken back. */
function checkSightings(calls, acquisitions, sightings, trial, report) {
  const { duration, patience, late = 0 } = trial;
  const known = new Map();
  for (const acquisition of acquisitions.values()) {
    known.set(`${acquisition.lease}/${acquisition.token}`, acquisition);
  }
  const acknowledged = acknowledgedNumbers(calls, acquisitions);
  const firstSeen = new Map();
  const reported = new Set();
  for (const { from, documents } of sightings) {
    for (const { _id, n, isLocked, lease, token } of documents) {
      const least = acknowledged(_id, from);
      if (n < least) report.violate('lost', _id, `${n} was seen after ${least} was acknowledged`);
      if (!isLocked || lease === undefined) continue;
      const key = `${lease}/${token}`;
      if (!firstSeen.has(key)) firstSeen.set(key, from);
      const acquisition = known.get(key);
      // An attempt of a call that failed, or whose process was killed, may still come in while it was repeated.
      const since = acquisition ? acquisition.prolonged : firstSeen.get(key) + patience;
      const open = acquisition?.isOpen ? patience : late;
      const until = Math.min(since + open + duration, acquisition?.releasedAt ?? Infinity);
      if (from <= until + SLACK_MS || reported.has(key)) continue;
      reported.add(key);
      const over = (from - until).toFixed(0);
      report.violate(
        'stuck',
        _id,
        `token ${token} (${acquisition?.id ?? 'of a failed call'}) still locked ${over} ms late`,
      );
    }
  }
}

/** Tells the highest number of a document that was acknowledged before a moment. */
function acknowledgedNumbers(calls, acquisitions) {
  const lists = new Map();
  for (const { verb, answer, acquisition, to } of calls.values()) {
    if (verb !== 'save' || answer?.outcome !== 'saved') continue;
    const { doc } = acquisitions.get(acquisition);
    if (!lists.has(doc)) lists.set(doc, []);
    lists.get(doc).push({ t: answer.t, to });
  }
  for (const list of lists.values()) list.sort((a, b) => a.t - b.t);
  const positions = new Map();
  // Moments are asked for in order, so one walk through each list is enough.
  return (doc, moment) => {
    const list = lists.get(doc) ?? [];
    const position = positions.get(doc) ?? { next: 0, highest: 0 };
    positions.set(doc, position);
    while (position.next < list.length && list[position.next].t < moment) {
      position.highest = Math.max(position.highest, list[position.next].to);
      position.next += 1;
    }
    return position.highest;
  };
}

module.exports = { check };

/**
 * From the moments that all processes brought back to figures: who had the lock after whom, and how
 * much later. Pure functions. Owns what counts as a hand-over, and that nobody held the lock while
 * another did.
 */
'use strict';

/**
 * A hand-over leads from one process to another and ends within the window. Its latency goes from
 * the moment before the holder calls `release` until the `lock` of the next has resolved.
 */
function judge({ window, processes, clientMicros, serverMicros }) {
  const holds = processes
    .flatMap(({ holds }, number) => holds.map((hold) => ({ ...hold, number })))
    .sort((a, b) => a.lockedAt - b.lockedAt);
  assertOneAtATime(holds);

  const counts = (hold) => hold.lockedAt >= window.from && hold.lockedAt < window.to;
  const counted = holds.filter(counts);
  const latencies = holds
    .map((hold, index) => ({ hold, before: holds[index - 1] }))
    .filter(({ hold, before }) => counts(hold) && before && before.number !== hold.number)
    .map(({ hold, before }) => hold.lockedAt - before.releasedAt)
    .sort((a, b) => a - b);
  const shares = processes.map((_, number) => counted.filter((hold) => hold.number === number));
  const sizes = shares.map(({ length }) => length);
  const perHandOver = (micros) =>
    micros === null || latencies.length === 0 ? null : micros / 1000 / latencies.length;

  return {
    handOvers: latencies.length,
    perSecond: latencies.length / ((window.to - window.from) / 1000),
    p50Ms: percentile(latencies, 50),
    p95Ms: percentile(latencies, 95),
    p99Ms: percentile(latencies, 99),
    highestMs: latencies.at(-1) ?? null,
    handedOverPercent: counted.length ? (100 * latencies.length) / counted.length : null,
    evenness: counted.length ? Math.min(...sizes) / Math.max(...sizes) : null,
    longestWaitMs: longestWait(holds, window),
    givenUp: processes.reduce((sum, { givenUp }) => sum + givenUp, 0),
    clientMs: perHandOver(clientMicros),
    serverMs: perHandOver(serverMicros),
  };
}

function assertOneAtATime(holds) {
  for (const [index, hold] of holds.entries()) {
    const overlap = index > 0 ? holds[index - 1].releasedAt - hold.lockedAt : 0;
    if (overlap > 0) throw new Error(`two processes held the lock at once, for ${overlap} ms`);
  }
}

/** Of all who waited in the window, those included who were still waiting at its end. */
function longestWait(holds, { from, to }) {
  const waits = holds
    .filter(({ askedAt, lockedAt }) => lockedAt >= from && askedAt < to)
    .map(({ askedAt, lockedAt }) => Math.min(lockedAt, to) - askedAt);
  return waits.length ? Math.max(...waits) : null;
}

/** The smallest of the sorted numbers that so many percent do not exceed; null of none. */
function percentile(sorted, percent) {
  if (sorted.length === 0) return null;
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

module.exports = { judge };

/**
 * The process of row `leak`: locks and releases, and tells its memory each so many pairs, at moments
 * when nothing is in flight. Must not judge what it measures. Ends with its parent.
 *
 *   node --expose-gc bench/leak-process.js <uri> <collection> <pairs> <samples>
 *
 * With LEAKY=1 in the environment it keeps every document that `lock` gave it: a leak to be found.
 */
'use strict';

const { setTimeout: sleep } = require('node:timers/promises');

const { open } = require('./contenders/ours');

const IN_FLIGHT = 64;
const LOCK_MS = 10_000;
/** V8 gives pages back in the background, and a finalizer frees its part after the collection. */
const COLLECTIONS = 3;
const SETTLE_MS = 50;

const [uri, collection, ...numbers] = process.argv.slice(2);
const [total, samples] = numbers.map(Number);
const kept = process.env.LEAKY === '1' ? [] : undefined;

/** Makes so many pairs; resolves when the last one has been answered. */
async function makePairs({ documents, lock, release }, count) {
  let left = count;
  async function lane(number) {
    const own = documents.filter((_, index) => index % IN_FLIGHT === number);
    for (let turn = 0; left > 0; turn++) {
      left--;
      const document = own[turn % own.length];
      const locked = await lock(document, LOCK_MS);
      if (!locked) throw new Error('a document that nobody else touches could not be locked');
      kept?.push(locked);
      const released = await release(document);
      if (!released) throw new Error('a document that was just locked could not be released');
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, (_, number) => lane(number)));
}

/** Resident memory, and what V8 knows of: its heap, and what lies outside and belongs to it. */
async function memory() {
  for (let turn = 0; turn < COLLECTIONS; turn++) {
    global.gc();
    await sleep(SETTLE_MS);
  }
  const { rss, heapUsed, external } = process.memoryUsage();
  return { rss, heap: heapUsed + external };
}

async function main() {
  const contender = await open(uri, [collection], {});
  const each = total / samples;
  for (let sample = 1; sample <= samples; sample++) {
    await makePairs(contender, each);
    process.send({ pairs: sample * each, ...(await memory()) });
  }
  await contender.close();
  process.disconnect();
}

process.on('disconnect', () => process.exit());
main().catch((error) => {
  console.error(error);
  process.exit(1);
});

/**
 * What grows in the row `grow`. Owns the parts, their steps, and which documents lie in how many
 * collections; must not measure anything.
 *
 * A part varies one thing and keeps all others. A step is one value of it: `{ column, title, flight,
 * stage }`. A stage is what contenders are started on, shared by steps that differ in nothing of it:
 *
 *   collections   how many there are, each with a model of its own
 *   documents     how many lie in each
 *   orderOf       what is stored, by number from 0
 *   settings      of the contender's process, see contender-process.js
 */
'use strict';

const { minimalOrder, sizedOrder, storedOrder } = require('../order');

/** Where calls in flight are not what grows. Enough to keep client and server busy. */
const FLIGHT = 16;

/** Documents that are locked, several for each lane: as many whatever else grows. */
const LOCKED = 1000;
/** Several for each of the 1,024 lanes as well. */
const LOCKED_IN_FLIGHT = 8192;
/** Two for each lane: at 1 MB they have to fit into the server's cache, for all contenders. */
const LOCKED_SIZED = 32;

/** The parts by name. The largest collection is left to the caller: it takes a while to fill. */
function growingParts(largestCollection) {
  return {
    inFlight: callsInFlight([1, 4, 16, 64, 256, 1024]),
    documentBytes: documentSizes({ 200: '200 B', 5000: '5 KB', 100_000: '100 KB', 1e6: '1 MB' }),
    models: models([1, 10, 100]),
    collectionSize: collectionSizes([1000, largestCollection]),
  };
}

function callsInFlight(flights) {
  const stage = {
    collections: 1,
    documents: LOCKED_IN_FLIGHT,
    orderOf: storedOrder,
    settings: {},
  };
  return {
    title: 'CALLS IN FLIGHT',
    // The only part that a program with no settings can take part in.
    takesPrograms: true,
    steps: flights.map((flight) => ({
      column: flight,
      title: `${counted(flight)} in flight`,
      flight,
      stage,
    })),
  };
}

function documentSizes(titles) {
  return {
    title: `DOCUMENT SIZE, ${FLIGHT} in flight`,
    steps: Object.entries(titles).map(([bytes, size]) => ({
      column: Number(bytes),
      title: `documents of ${size}`,
      flight: FLIGHT,
      stage: {
        collections: 1,
        documents: LOCKED_SIZED,
        orderOf: (number) => sizedOrder(number, Number(bytes)),
        settings: {},
      },
    })),
  };
}

function models(counts) {
  return {
    title: `MODELS, each with a collection of its own, ${FLIGHT} in flight`,
    steps: counts.map((count) => ({
      column: count,
      title: count === 1 ? '1 model' : `${counted(count)} models`,
      flight: FLIGHT,
      stage: {
        collections: count,
        documents: LOCKED / count,
        orderOf: storedOrder,
        // Lanes would else go through the models side by side, all on the same one.
        settings: { shuffled: true },
      },
    })),
  };
}

function collectionSizes(sizes) {
  return {
    title: `COLLECTION SIZE, ${counted(LOCKED)} documents of it locked, ${FLIGHT} in flight`,
    steps: sizes.map((size) => ({
      column: size,
      title: `${counted(size)} documents`,
      flight: FLIGHT,
      stage: {
        collections: 1,
        documents: size,
        orderOf: minimalOrder,
        settings: { filter: { number: { $in: picked(LOCKED, size) } }, shuffled: true },
      },
    })),
  };
}

/** So many different numbers below `size`, at random: the same ones for all contenders. */
function picked(count, size) {
  const numbers = new Set();
  while (numbers.size < count) numbers.add(Math.floor(Math.random() * size));
  return [...numbers];
}

function counted(number) {
  return number.toLocaleString('en-US');
}

module.exports = { growingParts };

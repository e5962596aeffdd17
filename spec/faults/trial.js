'use strict';
/*
 * One trial: a fresh collection with a handful of documents, processes that lock them, a nemesis, and in the end the
 * checker's report. It starts and ends its processes and relays; the MongoDB it is given.
 */

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const lockRelease = require('../..');
const mongoose = require('../support/mongoose');
const { check } = require('./checker');
const { moment, readJournals } = require('./journal');
const { Locker } = require('./locker');
const { LATEST, strike } = require('./nemeses');
const { Random } = require('./random');
const { WireRelay } = require('./wire-relay');

const PROCESSES = 8;
const DOCUMENTS = 10;
const LANES = 3;
/** Of each lock. Short, so that losing one is an everyday event. */
const DURATION_MS = 400;
/** For how long a call is repeated before it fails. */
const PATIENCE_MS = 5000;
const SIGHT_MS = 50;
const VERSIONS = ['9', '8', '7', '6'];

let number = 0;
const running = new Set();

/**
 * @param {object} plan
 * @param {object} plan.deployment a replica set of our own
 * @param {object} plan.nemesis one of NEMESES or CONTROLS
 * @param {number} plan.seconds for how long the nemesis strikes
 * @param {number} [plan.acquisitions] it goes on until there are so many, for ten times as long at most
 * @param {number} plan.seed
 * @returns the checker's report
 */
async function runTrial({ deployment, nemesis, seconds, acquisitions = 0, seed }) {
  number += 1;
  const random = new Random(seed);
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mongoose-lock-release-faults-'));
  const trial = new Trial(deployment, nemesis, random, directory);
  running.add(trial);
  try {
    await trial.begin();
    await trial.strike(1000 * seconds, acquisitions);
    return await trial.judge();
  } finally {
    await trial.end();
    running.delete(trial);
    fs.rmSync(directory, { recursive: true, force: true });
  }
}

class Trial {
  #deployment;
  #nemesis;
  #random;
  #directory;
  #collection = `trial${number}`;
  #killed = new Set();
  #sightings = [];
  #isWatching = true;
  #watching;
  #connection;
  #lockers = [];
  #relays = [];
  #strikes = 0;

  constructor(deployment, nemesis, random, directory) {
    this.#deployment = deployment;
    this.#nemesis = nemesis;
    this.#random = random;
    this.#directory = directory;
  }

  get #documents() {
    return this.#connection.db.collection(this.#collection);
  }

  async begin() {
    this.#connection = await mongoose
      .createConnection(this.#deployment.uriFor('faults'), { heartbeatFrequencyMS: 500 })
      .asPromise();
    const ids = Array.from({ length: DOCUMENTS }, (_, index) => index + 1);
    await this.#documents.insertMany(ids.map((_id) => ({ _id, n: 0, locked: new Date(0) })));
    const setup = {
      uri: await this.#uri(),
      options: { serverSelectionTimeoutMS: PATIENCE_MS, heartbeatFrequencyMS: 500 },
      collection: this.#collection,
      protection: this.#nemesis.protection ?? 'all',
      ids,
      lanes: LANES,
      duration: DURATION_MS,
      // How often the work takes its time.
      long: this.#nemesis.long ?? 0.04,
    };
    this.#lockers = Array.from({ length: PROCESSES }, (_, index) => {
      const own = {
        name: `locker${index + 1}`,
        mongoose: setup.protection === 'original' ? '6' : VERSIONS[index % VERSIONS.length],
        clock: this.#nemesis.clocks
          ? [undefined, '+5m', undefined, '-5m'][(index >> 1) % 4]
          : undefined,
        directory: this.#directory,
        random: this.#random.fork(),
      };
      return new Locker(setup, own, this.#killed);
    });
    await Promise.all(this.#lockers.map((locker) => locker.start()));
    this.#watching = this.#watch();
  }

  async strike(ms, wanted) {
    const field = {
      lockers: this.#lockers,
      relays: this.#relays,
      deployment: this.#deployment,
      duration: DURATION_MS,
      strikes: 0,
    };
    const begin = moment();
    const isOver = () => {
      const passed = moment() - begin;
      const acquired = this.#lockers.reduce((sum, locker) => sum + locker.acquisitions, 0);
      return passed >= ms && (acquired >= wanted || passed >= 10 * ms);
    };
    await strike(this.#nemesis, field, this.#random.fork(), isOver);
    this.#strikes = field.strikes;
  }

  async judge() {
    await this.#deployment.primary();
    await Promise.all(this.#lockers.map((locker) => locker.end()));
    const unlockable = await this.#findUnlockable();
    this.#isWatching = false;
    await this.#watching;
    const report = check({
      journals: readJournals(this.#directory),
      killed: this.#killed,
      documents: await this.#documents.find().toArray(),
      sightings: this.#sightings,
      unlockable,
      duration: DURATION_MS,
      patience: PATIENCE_MS,
      late: this.#nemesis.strikes.includes('answers') ? LATEST * DURATION_MS : 0,
    });
    return { ...report, strikes: this.#strikes };
  }

  async end() {
    this.#isWatching = false;
    this.killNow();
    await this.#watching;
    await Promise.all(this.#relays.map((relay) => relay.stop()));
    await this.#connection?.close();
  }

  killNow() {
    for (const locker of this.#lockers) locker.killNow();
  }

  async #uri() {
    if (!this.#nemesis.relayed) return this.#deployment.uriFor('faults');
    const { servers } = this.#deployment;
    this.#relays = await Promise.all(servers.map((server) => WireRelay.start(server)));
    const addresses = new Map(
      servers.map(({ host, port }, i) => [`${host}:${port}`, `${host}:${this.#relays[i].port}`]),
    );
    for (const relay of this.#relays) relay.addresses = addresses;
    return this.#deployment
      .uriFor('faults')
      .replace(this.#deployment.hosts, [...addresses.values()].join(','));
  }

  /** Looks at the documents all the time, as a stranger; where the servers are busy with themselves it sees nothing. */
  async #watch() {
    const look = [
      {
        $project: {
          n: 1,
          isLocked: { $gt: ['$locked', '$$NOW'] },
          lease: '$lockedBy.lease',
          token: '$lockedBy.token',
        },
      },
    ];
    while (this.#isWatching) {
      const from = moment();
      const documents = await this.#documents
        .aggregate(look, { maxTimeMS: 2000 })
        .toArray()
        .catch(() => undefined);
      if (documents) {
        const seen = documents.map(({ lease, ...rest }) => ({
          ...rest,
          lease: lease && String(lease),
        }));
        this.#sightings.push({ from, documents: seen });
      }
      await sleep(SIGHT_MS);
    }
  }

  /** Everything is whole and nobody works any more: each document must be free when its time is over. */
  async #findUnlockable() {
    const schema = new mongoose.Schema({ _id: Number }, { collection: this.#collection });
    const Model = this.#connection.model(
      `Probe${number}`,
      schema.plugin(lockRelease, { label: 'probe' }),
    );
    const until = moment() + PATIENCE_MS + 10 * DURATION_MS;
    const unlockable = [];
    for (const { _id } of await this.#documents.find().toArray()) {
      const probe = Model.hydrate({ _id });
      while (!(await probe.lock(DURATION_MS)) && moment() < until) await sleep(20);
      if (!probe.$lock) unlockable.push(_id);
      else await probe.release();
    }
    return unlockable;
  }
}

process.on('exit', () => {
  for (const trial of running) trial.killNow();
});

module.exports = { runTrial };

'use strict';
/*
 * Claiming: the documents of a query, each locked for the caller; which ones, in which order, and what they are like.
 */

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const { QUEUE, fill, isRefusal, lockedIn, numbers, queue } = require('./queue');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, lapse, load, lockRelease, mongoose, stored } = stage;
const { Schema } = mongoose;
const { Binary, Decimal128, Int32, Long, ObjectId, UUID } = mongoose.mongo.BSON;

describe('claim', function () {
  it('gives one document of the query, locked, unless more are asked for', async function () {
    const Job = queue();
    await fill(Job, 3);
    const claimed = await Job.claim({ state: 'new' }, LONG_MS);
    assert.equal(claimed.length, 1);
    const [job] = claimed;
    assert.ok(job instanceof Job);
    assert.equal(job.isNew, false);
    assert.equal(job.isModified(), false);
    assert.equal(job.$lock.held, true);
    const raw = await stored(job);
    assert.deepEqual(raw.locked, raw.lockedBy.until);
    assert.deepEqual(raw.locked, job.locked);
    assert.equal(job.locked - raw.lockedBy.since, LONG_MS);
    assert.equal(await (await load(job)).lock(LONG_MS), null);
    assert.equal(await lockedIn(Job), 1);
  });

  for (const limit of [1, 2, 7, 150, 1000]) {
    it(`gives as many as there are, and never more than ${limit} when that is the limit`, async function () {
      const Job = queue();
      const count = limit + 3;
      await fill(Job, count);
      const first = await Job.claim({}, LONG_MS, { limit });
      assert.equal(first.length, limit);
      assert.equal(await lockedIn(Job), limit);
      const rest = await Job.claim({}, LONG_MS, { limit: 1000 });
      assert.equal(rest.length, 3);
      assert.deepEqual(await Job.claim({}, LONG_MS, { limit }), []);
      const all = numbers([...first, ...rest]).toSorted((a, b) => a - b);
      assert.deepEqual(all, [...Array(count).keys()]);
      assert.ok([...first, ...rest].every(({ $lock }) => $lock.held));
    });
  }

  it('locks nothing but what matches', async function () {
    const Job = queue();
    await fill(Job, 5, 'new');
    await fill(Job, 5, 'done');
    const claimed = await Job.claim({ state: 'new', n: { $gte: 2 } }, LONG_MS, { limit: 100 });
    assert.deepEqual(
      numbers(claimed).toSorted((a, b) => a - b),
      [2, 3, 4],
    );
    assert.equal(await lockedIn(Job), 3);
  });

  it('gives an empty array when nothing matches, at once', async function () {
    const Job = queue();
    assert.deepEqual(await Job.claim({}, LONG_MS), []);
    assert.deepEqual(await Job.claim({}, LONG_MS, { limit: 10 }), []);
    assert.deepEqual(await Job.claim({}, LONG_MS, null), []);
  });

  it('takes what is free again, with a token that grows', async function () {
    const Job = queue();
    await fill(Job, 2);
    const tokens = [];
    for (let round = 0; round < 3; round += 1) {
      const claimed = await Job.claim({}, LONG_MS, { limit: 2 });
      assert.equal(claimed.length, 2);
      tokens.push(claimed.map(({ $lock }) => $lock.token));
      if (round === 1) for (const job of claimed) await lapse(job);
      else for (const job of claimed) await job.release();
    }
    assert.deepEqual(tokens, [
      [1, 1],
      [2, 2],
      [3, 3],
    ]);
  });

  it('takes documents from before the plugin, without `locked` or with null', async function () {
    const Job = queue();
    await Job.collection.insertMany([{ n: 1 }, { n: 2, locked: null }, { n: 3, locked: null }]);
    const one = await Job.claim({}, LONG_MS);
    const others = await Job.claim({}, LONG_MS, { limit: 10 });
    assert.deepEqual(numbers([...one, ...others]).toSorted(), [1, 2, 3]);
    assert.ok([...one, ...others].every(({ $lock }) => $lock.held && $lock.token === 1));
  });

  it('takes a duration of 0, which locks nothing for long', async function () {
    const Job = queue();
    await fill(Job, 3);
    assert.equal((await Job.claim({}, 0)).length, 1);
    const claimed = await Job.claim({}, 0, { limit: 10 });
    assert.equal(claimed.length, 3);
    assert.ok(claimed.every(({ $lock }) => !$lock.held));
  });

  describe('order', function () {
    let Job;

    beforeEach(async function () {
      Job = stage.lockable({ n: Number, kind: String, 'a.b': { c: Number } });
      await Job.insertMany([
        { n: 2, kind: 'a' },
        { n: 1, kind: 'b' },
        { n: 3, kind: 'a' },
        { n: 1, kind: 'a' },
      ]);
    });

    const FORMS = [
      'n',
      '-n',
      'n kind',
      '-kind n',
      '-kind -n',
      { n: 1 },
      { n: -1, kind: 1 },
      { kind: 'asc', n: 'desc' },
      { kind: 'ascending', n: 'descending' },
      [['n', 1]],
      [
        ['kind', -1],
        ['n', 'asc'],
      ],
      [['n', 'descending']],
      new Map([
        ['kind', 1],
        ['n', -1],
      ]),
      { _id: -1 },
    ];

    for (const form of FORMS) {
      const shown = form instanceof Map ? `Map ${JSON.stringify([...form])}` : JSON.stringify(form);
      it(`is Mongoose’s: ${shown}`, async function () {
        const keyed = (docs) => docs.map(({ kind, n }) => `${kind}${n}`);
        const expected = await Job.find().sort(form);
        const claimed = [];
        for (const limit of [1, 2, 2]) {
          claimed.push(...(await Job.claim({}, LONG_MS, { limit, sort: form })));
        }
        const comparable = (docs) =>
          docs.map((doc) => pathsOf(form).map((path) => String(doc.get(path))));
        assert.deepEqual(comparable(claimed), comparable(expected));
        assert.deepEqual(keyed(claimed).toSorted(), keyed(expected).toSorted());
      });
    }

    function pathsOf(form) {
      const { sort } = Job.find().sort(form).getOptions();
      return sort instanceof Map ? [...sort.keys()] : Object.keys(sort);
    }

    it('can be by the score of a text', async function () {
      const Text = stage.lockable({ text: String });
      await Text.collection.createIndex({ text: 'text' });
      await Text.insertMany(['wolf', 'wolf wolf wolf', 'sheep'].map((text) => ({ text })));
      const claimed = await Text.claim({ $text: { $search: 'wolf' } }, LONG_MS, {
        limit: 5,
        sort: { score: { $meta: 'textScore' } },
      });
      assert.deepEqual(
        claimed.map(({ text }) => text),
        ['wolf wolf wolf', 'wolf'],
      );
      for (const { text } of claimed) assert.match(text, /wolf/);
    });

    const UNUSABLE = [
      ['', "''"],
      [5, '5'],
      [true, 'true'],
      [{}, '{}'],
      [[], '[]'],
      [{ n: 2 }, 'n: 2'],
      [{ n: 'up' }, "'up'"],
      [['n'], "'n'"],
      [() => 1, 'Function'],
    ];

    for (const [sort, shown] of UNUSABLE) {
      it(`is refused when it is none: ${shown}`, async function () {
        const commands = await commandsDuring(Job, async () => {
          const error = await failureOf(Job.claim({}, LONG_MS, { sort }));
          isRefusal(error, TypeError, 'options.sort', shown);
        });
        assert.deepEqual(commands, []);
      });
    }
  });

  describe('filter', function () {
    it('is cast as that of a find', async function () {
      const Job = stage.lockable({ n: Number, when: Date, owner: Schema.Types.ObjectId });
      const owner = new ObjectId();
      await Job.create([
        { n: 1, when: new Date(1000), owner },
        { n: 2, when: new Date(2000), owner: new ObjectId() },
      ]);
      const cases = [
        { n: '2' },
        { n: { $in: ['1', '7'] } },
        { when: { $lt: '1970-01-01T00:00:01.500Z' } },
        { owner: String(owner) },
        { $or: [{ n: '1' }, { owner: String(owner) }] },
        { $expr: { $eq: ['$n', 2] } },
        { $expr: { $eq: ['$n', 2] }, $and: [{ n: '2' }] },
        { n: undefined },
        { $nor: [{ n: '1' }] },
        { $where: 'this.n === 1' },
        {
          $where: function second() {
            return this.n === 2;
          },
        },
      ];
      for (const filter of cases) {
        const expected = await Job.find(filter);
        for (const limit of [1, 10]) {
          const claimed = await Job.claim(filter, LONG_MS, { limit });
          assert.deepEqual(numbers(claimed), numbers(expected), JSON.stringify(filter));
          for (const job of claimed) await job.release();
        }
      }
    });

    it('may be empty, an `_id` alone, or a document', async function () {
      const Job = queue();
      await fill(Job, 2);
      const [job] = await Job.find({ n: 1 });
      assert.deepEqual(numbers(await Job.claim({ _id: String(job._id) }, LONG_MS)), [1]);
      assert.deepEqual(numbers(await Job.claim({}, LONG_MS, { limit: 9 })), [0]);
    });

    it('that cannot be cast is a CastError, and nothing is sent', async function () {
      const Job = queue();
      const commands = await commandsDuring(Job, async () => {
        for (const limit of [1, 5]) {
          const error = await failureOf(Job.claim({ n: 'many' }, LONG_MS, { limit }));
          assert.ok(error instanceof mongoose.Error.CastError, `${error}`);
          assert.equal(error.path, 'n');
        }
      });
      assert.deepEqual(commands, []);
    });

    it('is not changed, and what the caller changes afterwards does not matter', async function () {
      const Job = queue();
      await fill(Job, 2);
      const filter = { n: '1' };
      const claiming = Job.claim(filter, LONG_MS);
      assert.deepEqual(filter, { n: '1' });
      filter.n = '0';
      assert.deepEqual(numbers(await claiming), [1]);
    });

    it('follows the schema’s collation, for one and for many', async function () {
      const collation = { locale: 'en', strength: 2 };
      const Job = stage.lockable({ state: String, n: Number }, { schema: { collation } });
      await Job.createCollection();
      await Job.insertMany(['new', 'NEW', 'New', 'old'].map((state, n) => ({ state, n })));
      const one = await Job.claim({ state: 'nEW' }, LONG_MS);
      assert.equal(one.length, 1);
      assert.equal((await Job.claim({ state: 'nEW' }, LONG_MS, { limit: 10 })).length, 2);
    });

    it('follows it where the collection has none', async function () {
      const collation = { locale: 'en', strength: 2 };
      const schema = { collation, autoCreate: false, autoIndex: false };
      const Job = stage.lockable({ state: String, n: Number }, { schema });
      await Job.collection.insertMany(['new', 'NEW', 'New', 'old'].map((state) => ({ state })));
      assert.equal((await Job.claim({ state: 'nEW' }, LONG_MS)).length, 1);
      assert.equal((await Job.claim({ state: 'nEW' }, LONG_MS, { limit: 10 })).length, 2);
    });
  });

  describe('through discriminators', function () {
    let Event;
    let Click;
    let Key;

    beforeEach(async function () {
      Event = stage.lockable({ n: Number }, { schema: { discriminatorKey: 'kind' } });
      Click = Event.discriminator(stage.freshName('Click'), new Schema({ x: Number }));
      Key = Event.discriminator(
        stage.freshName('Key'),
        new Schema({ code: String, secret: { type: String, select: false } }),
        'key',
      );
      await Event.create({ n: 0 });
      await Click.create({ n: 1, x: 5 });
      await Key.create({ n: 2, code: 'Enter', secret: 'private' });
    });

    for (const limit of [1, 10]) {
      it(`gives the base model all kinds, each of its class (limit ${limit})`, async function () {
        const claimed = [];
        for (let got; (got = await Event.claim({}, LONG_MS, { limit, sort: 'n' })).length > 0;) {
          claimed.push(...got);
        }
        assert.deepEqual(numbers(claimed), [0, 1, 2]);
        const classes = claimed.map((doc) => doc.constructor.modelName);
        assert.deepEqual(classes, [Event.modelName, Click.modelName, Key.modelName]);
        assert.equal(claimed[1].x, 5);
        assert.equal(claimed[2].code, 'Enter');
        assert.equal(claimed[2].secret, undefined);
        for (const doc of claimed) {
          assert.equal(doc.$lock.held, true);
          doc.n += 10;
          await doc.save();
          assert.ok(await doc.release());
        }
        assert.equal((await Key.findOne().select('+secret')).secret, 'private');
      });

      it(`gives a kind’s model its own only (limit ${limit})`, async function () {
        const clicks = await Click.claim({}, LONG_MS, { limit });
        assert.deepEqual(numbers(clicks), [1]);
        assert.ok(clicks[0] instanceof Click);
        assert.deepEqual(await Click.claim({}, LONG_MS, { limit }), []);
        assert.deepEqual(await Key.claim({ n: 0 }, LONG_MS, { limit }), []);
        assert.equal(await lockedIn(Event), 1);
      });
    }

    it('does so too when they are locked through the base model', async function () {
      const name = stage.freshName();
      const schema = new Schema({ n: Number }).plugin(lockRelease, name);
      const Base = stage.connection.model(name, schema);
      const Kind = Base.discriminator(stage.freshName(), new Schema({ x: Number }));
      await Base.create({ n: 0 });
      await Kind.create({ n: 1, x: 1 });
      const claimed = await Kind.claim({}, LONG_MS, { limit: 10 });
      assert.deepEqual(numbers(claimed), [1]);
      assert.ok(claimed[0] instanceof Kind);
      assert.equal(await lockedIn(Base), 1);
    });
  });

  describe('documents', function () {
    it('have a lock each: released, extended and fenced one by one', async function () {
      const Job = queue();
      await fill(Job, 5);
      const claimed = await Job.claim({}, LONG_MS, { limit: 5, sort: 'n' });
      const [released, extended, saved, taken, kept] = claimed;
      assert.equal(new Set(claimed.map(({ $lock }) => $lock)).size, 5);
      const leases = await Promise.all(claimed.map(async (job) => (await stored(job)).lockedBy));
      assert.equal(new Set(leases.map(({ lease }) => String(lease))).size, 1, 'one lease');

      assert.ok(await released.release());
      assert.equal(released.$lock.held, false);
      assert.ok(await extended.extend(2 * LONG_MS));
      assert.ok(extended.$lock.remaining > LONG_MS);
      saved.n = 30;
      await saved.save();
      assert.equal((await stored(saved)).n, 30);

      await lapse(taken);
      const other = await load(taken);
      assert.ok(await other.lock(LONG_MS));
      taken.n = 40;
      const error = await failureOf(taken.save());
      assert.equal(error.code, 'ERR_LOCK_LOST');
      assert.equal(await taken.release(), null);
      assert.equal(other.$lock.held, true);

      for (const job of [extended, saved, kept]) assert.equal(job.$lock.held, true);
      assert.ok(kept.$lock.remaining <= LONG_MS);
      assert.equal(
        await Job.updateOne(kept.$lock.filter, { n: 50 }).then((r) => r.matchedCount),
        1,
      );
      assert.equal(await lockedIn(Job), 4);
      assert.ok(await kept[Symbol.asyncDispose].call(kept).then(() => true));
      assert.equal(await lockedIn(Job), 3);
    });

    it('are what a find gives: without what is not selected, with hooks and defaults', async function () {
      const inits = [];
      const Job = stage.lockable(
        {
          n: Number,
          secret: { type: String, select: false, default: 'by default' },
          tags: [String],
          child: new Schema({ name: String, hidden: { type: String, select: false } }),
        },
        {
          prepare(schema) {
            schema.post('init', (doc) => inits.push(doc.n));
            schema.virtual('double').get(function twice() {
              return this.n * 2;
            });
          },
        },
      );
      await Job.create(
        [1, 2].map((n) => ({ n, secret: 's', tags: ['t'], child: { hidden: 'h' } })),
      );
      for (const options of [{ sort: 'n' }, { limit: 5 }]) {
        inits.length = 0;
        const [job] = await Job.claim({}, LONG_MS, options);
        const found = await Job.findById(job._id);
        assert.deepEqual(job.toObject(), found.toObject());
        assert.equal(job.secret, undefined);
        assert.equal(job.double, job.n * 2);
        assert.deepEqual(inits, [job.n, job.n]);
        job.n += 10;
        await job.save();
        const raw = await stored(job);
        assert.equal(raw.secret, 's');
        assert.equal(raw.child.hidden, 'h');
      }
    });

    it('bump updatedAt, by its custom name and clock too', async function () {
      const now = new Date(Date.UTC(2030, 1, 1));
      for (const [schema, path, at] of [
        [{ timestamps: true }, 'updatedAt'],
        [{ timestamps: { updatedAt: 'changed', currentTime: () => now } }, 'changed', now],
      ]) {
        const Job = stage.lockable(QUEUE, { schema });
        await Job.collection.insertMany([1, 2].map((n) => ({ n, [path]: new Date(0) })));
        for (const limit of [1, 5]) {
          const [job] = await Job.claim({}, LONG_MS, { limit });
          assert.ok(job.get(path) > new Date(0));
          if (at) assert.deepEqual(job.get(path), at);
          assert.deepEqual((await stored(job))[path], job.get(path));
        }
      }
    });

    it('may have an `_id` of any type', async function () {
      const ids = [
        new ObjectId(),
        'a string',
        '',
        '$locked',
        7,
        new Int32(8),
        Long.fromString('9007199254740993'),
        1.5,
        true,
        new Date(5),
        Decimal128.fromString('2.50'),
        new UUID(randomUUID()).toBinary(),
        new Binary(Buffer.from('bytes')),
        { a: 1, b: { c: [1, 2] } },
        { b: 1, a: 2 },
      ];
      for (const limit of [1, 1000]) {
        const Job = stage.lockable({ _id: {}, n: Number });
        await Job.collection.insertMany(ids.map((_id, n) => ({ _id, n })));
        const claimed = [];
        for (let got; (got = await Job.claim({}, LONG_MS, { limit })).length > 0;) {
          claimed.push(...got);
        }
        assert.deepEqual(
          numbers(claimed).toSorted((a, b) => a - b),
          [...ids.keys()],
        );
        assert.equal(await lockedIn(Job), ids.length);
        for (const job of claimed) assert.equal(job.$lock.held, true);
      }
    });

    it('can be released whatever the type of their `_id`', async function () {
      const { Types } = Schema;
      for (const [type, ids] of [
        [Types.ObjectId, [new ObjectId(), new ObjectId()]],
        [String, ['', 'two']],
        [Number, [0, 1.5]],
        [Buffer, [Buffer.from('one'), Buffer.from('two')]],
        [Types.UUID, [randomUUID(), randomUUID()]],
        [Types.Decimal128, ['1.0', '2.0']],
        [{ a: Number, b: String }, [{ a: 1, b: 'x' }, { a: 2 }]],
      ]) {
        const Job = stage.lockable({ _id: type, n: Number });
        await Job.create(ids.map((_id) => ({ _id, n: 1 })));
        const claimed = await Job.claim({}, LONG_MS, { limit: 2 });
        assert.equal(claimed.length, 2, `${type.name ?? type}`);
        for (const job of claimed) {
          job.n = 2;
          await job.save();
          assert.ok(await job.release());
        }
        assert.equal(await lockedIn(Job), 0);
        assert.equal(await Job.countDocuments({ n: 2 }), 2);
      }
    });

    it('follow the option path, and are locked through the model of the option modelName', async function () {
      for (const path of ['busy', 'work.busy']) {
        const Job = queue({ plugin: { path } });
        await Job.collection.insertMany([{ n: 1 }, { n: 2 }, { n: 3 }]);
        for (const limit of [1, 5]) {
          const [job] = await Job.claim({}, LONG_MS, { limit });
          assert.ok(job.get(path) > new Date());
          assert.ok(job.$lock.held);
        }
        assert.equal(await lockedIn(Job), 3);
        assert.equal(await Job.find().unlocked().countDocuments(), 0);
      }
      const name = stage.freshName();
      const Whole = stage.connection.model(name, new Schema(QUEUE).plugin(lockRelease));
      const schema = new Schema({ n: Number }, { collection: Whole.collection.collectionName });
      const Part = stage.connection.model(stage.freshName(), schema.plugin(lockRelease, name));
      await fill(Whole, 2);
      const [job] = await Part.claim({ n: '1' }, LONG_MS);
      assert.ok(job instanceof Whole);
      assert.equal(job.state, 'new');
    });

    it('carry the shard key in what is sent for them', async function () {
      const Job = stage.lockable(
        { n: Number, at: { zone: String } },
        { schema: { shardKey: { 'at.zone': 1 } } },
      );
      await Job.create([1, 2].map((n) => ({ n, at: { zone: 'eu' } })));
      const claimed = await Job.claim({ 'at.zone': 'eu' }, LONG_MS, { limit: 2 });
      const [command] = await commandsDuring(Job, () => claimed[0].release());
      assert.deepEqual(command.query['at.zone'], { $eq: 'eu' });
    });
  });
});

'use strict';
/*
 * The document that lock, release and extend give: made as a query of Mongoose's own would have made it; and what
 * else Mongoose brings along that finds or changes a document: _ids of any type, timestamps, shard keys, middleware.
 */

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, load, lockRelease, mongoose, stored, write } = stage;
const { Schema } = mongoose;
const { Binary, Decimal128, Int32, Long, ObjectId, UUID } = mongoose.mongo.BSON;

/** What lock, extend and release give, in turn. */
async function givenBy(doc) {
  return [await doc.lock(LONG_MS), await doc.extend(LONG_MS), await doc.release()];
}

describe('documents that are given', function () {
  it('are like those of a query, whatever they hold', async function () {
    const Thing = stage.lockable(
      {
        text: String,
        number: Number,
        when: Date,
        flag: Boolean,
        bytes: Buffer,
        id: Schema.Types.ObjectId,
        decimal: Schema.Types.Decimal128,
        map: { type: Map, of: Number },
        mixed: {},
        list: [String],
        nested: { deep: { deeper: Number } },
        child: new Schema({ name: String }),
        children: [new Schema({ name: String, secret: { type: String, select: false } })],
        missing: { type: String, default: 'by default' },
      },
      { schema: { minimize: false } },
    );
    const thing = await Thing.create({
      text: 'é✓',
      number: 1.5,
      when: new Date(5),
      flag: true,
      bytes: Buffer.from('bytes'),
      id: new ObjectId(),
      decimal: Decimal128.fromString('1.10'),
      map: { a: 1 },
      mixed: { any: ['thing', { at: 1 }] },
      list: ['a', 'b'],
      nested: { deep: { deeper: 2 } },
      child: { name: 'child' },
      children: [{ name: 'one', secret: 'private' }, { name: 'two' }],
    });
    await write(thing, {
      $set: { unknown: 1, long: Long.fromNumber(2 ** 40) },
      $unset: { missing: 1 },
    });
    for (const given of await givenBy(thing)) {
      const found = await load(thing);
      const fields = (doc) => ({ ...doc.toObject(), locked: undefined });
      assert.deepEqual(fields(given), fields(found));
      assert.deepEqual(given.toJSON().children, found.toJSON().children);
      assert.equal(given.isNew, false);
      assert.deepEqual(given.modifiedPaths(), found.modifiedPaths());
      assert.equal(given.isModified(), false);
      for (const path of ['text', 'children', 'lockedBy', 'locked', 'unknown']) {
        assert.equal(given.isSelected(path), found.isSelected(path), path);
        assert.equal(given.isInit(path), found.isInit(path), path);
      }
      assert.equal(given.get('unknown'), found.get('unknown'));
      assert.equal(given.$session(), null);
      assert.equal(given.collection.name, found.collection.name);
    }
  });

  it('leave out what `select: false` hides, and never save defaults over it', async function () {
    const hidden = { type: String, select: false, default: 'default' };
    const Account = stage.lockable(
      {
        name: String,
        secret: hidden,
        required: { type: String, select: false, required: true },
        nested: { secret: hidden, shown: String },
        children: [new Schema({ secret: hidden, shown: String })],
      },
      { schema: { discriminatorKey: 'kind' } },
    );
    const Admin = Account.discriminator(
      stage.freshName('Admin'),
      new Schema({ key: hidden, keys: { inner: hidden }, shown: String }),
    );
    const values = {
      name: 'one',
      secret: 'private',
      required: 'private',
      nested: { secret: 'private', shown: 'yes' },
      children: [{ secret: 'private', shown: 'yes' }],
    };
    const account = await Account.create(values);
    const admin = await Admin.create({ ...values, key: 'private', keys: { inner: 'private' } });
    for (const doc of [account, admin, await Account.findById(admin._id)]) {
      const before = await stored(doc);
      for (const given of await givenBy(doc)) {
        assert.ok(given instanceof (doc === account ? Account : Admin));
        assert.equal(JSON.stringify(given).includes('private'), false);
        for (const path of ['secret', 'required', 'nested.secret', 'key', 'keys.inner']) {
          assert.equal(given.get(path), undefined, path);
        }
        assert.equal(given.children[0].secret, undefined);
        assert.equal(given.nested.shown, 'yes');
        given.name = `${given.name}!`;
        await given.save();
        const { locked, lockedBy } = await stored(doc);
        assert.deepEqual(await stored(doc), { ...before, name: given.name, locked, lockedBy });
      }
      await write(doc, { $set: { name: 'one' } });
    }
  });

  it('keep a discriminator’s class, from the base model and from its own', async function () {
    const Animal = stage.lockable({ name: String }, { schema: { discriminatorKey: 'kind' } });
    const Dog = Animal.discriminator(stage.freshName('Dog'), new Schema({ tricks: [String] }));
    const Cat = Animal.discriminator(stage.freshName('Cat'), new Schema({ lives: Number }));
    const dog = await Dog.create({ name: 'Rex', tricks: ['sit'] });
    const plain = await Animal.create({ name: 'any' });
    for (const doc of [dog, await Animal.findById(dog._id)]) {
      for (const given of await givenBy(doc)) {
        assert.ok(given instanceof Dog);
        assert.deepEqual([...given.tricks], ['sit']);
      }
    }
    for (const given of await givenBy(plain)) assert.equal(given.constructor, Animal);
    // What has become another kind is not this model's any more, as for its own queries.
    await write(dog, { $set: { kind: Cat.modelName } });
    const other = await Animal.findById(plain._id);
    assert.equal(await dog.lock(LONG_MS), null);
    assert.ok(await other.lock(LONG_MS));
  });

  it('know discriminators that were added after the first lock', async function () {
    const Animal = stage.lockable({ name: String }, { schema: { discriminatorKey: 'kind' } });
    await givenBy(await Animal.create({ name: 'first' }));
    const schema = new Schema({ key: { type: String, select: false } });
    const Late = Animal.discriminator(stage.freshName('Late'), schema);
    const late = await Late.create({ name: 'late', key: 'private' });
    for (const given of await givenBy(await Animal.findById(late._id))) {
      assert.ok(given instanceof Late);
      assert.equal(given.key, undefined);
    }
  });

  it('leave out what a discriminator hides, also through the base model', async function () {
    const hidden = { type: String, select: false, default: 'default' };
    const name = stage.freshName('Animal');
    const Animal = stage.connection.model(
      name,
      new Schema({ name: String }, { discriminatorKey: 'kind' }).plugin(lockRelease, name),
    );
    const schema = new Schema({ key: hidden, parts: [new Schema({ key: hidden, shown: String })] });
    const Dog = Animal.discriminator(stage.freshName('Dog'), schema, 'the dog');
    const dog = await Dog.create({
      name: 'Rex',
      key: 'own',
      parts: [{ key: 'own', shown: 'yes' }],
    });
    for (const given of await givenBy(dog)) {
      assert.ok(given instanceof Dog);
      assert.equal(given.key, undefined);
      assert.equal(given.parts[0].key, undefined);
      given.name = `${given.name}!`;
      given.parts[0].shown = given.name;
      await given.save();
      const raw = await stored(dog);
      assert.equal(raw.kind, 'the dog');
      assert.equal(raw.key, 'own');
      assert.equal(raw.parts[0].key, 'own');
      assert.equal(raw.parts[0].shown, given.name);
    }
  });

  it('run init hooks, once each, and no middleware of queries or saves', async function () {
    const ran = [];
    const Order = stage.lockable(undefined, {
      prepare(schema) {
        schema.pre('init', () => void ran.push('pre init'));
        schema.post('init', () => void ran.push('post init'));
        for (const hook of ['findOneAndUpdate', 'find', 'findOne', 'updateOne', 'save']) {
          schema.pre(hook, async () => void ran.push(`pre ${hook}`));
          schema.post(hook, async () => void ran.push(`post ${hook}`));
        }
      },
    });
    const order = await Order.create({ name: 'one' });
    for (const verb of ['lock', 'extend', 'release']) {
      ran.length = 0;
      await order[verb](...(verb === 'release' ? [] : [LONG_MS]));
      assert.deepEqual(ran, ['pre init', 'post init'], verb);
    }
  });

  it('reject the one call whose init hook throws, and no other', async function () {
    const Order = stage.lockable(undefined, {
      prepare(schema) {
        schema.post('init', (doc) => {
          if (doc.name === 'bad' && doc.locked > new Date(0)) throw new Error('from the hook');
        });
      },
    });
    const names = ['one', 'bad', 'two'];
    const orders = await Order.create(names.map((name) => ({ name })));
    const results = await Promise.allSettled(orders.map((order) => order.lock(LONG_MS)));
    assert.deepEqual(
      results.map(({ status, reason }) => reason?.message ?? status),
      ['fulfilled', 'from the hook', 'fulfilled'],
    );
  });

  it('have virtuals, getters, methods and statics, and can be populated', async function () {
    const Owner = stage.lockable();
    const Order = stage.lockable(
      {
        name: { type: String, get: (name) => `${name}!` },
        owner: { type: Schema.Types.ObjectId, ref: Owner.modelName },
      },
      {
        prepare(schema) {
          schema.virtual('loud').get(function loud() {
            return this.name.toUpperCase();
          });
          schema.methods.greet = function greet() {
            return `hello ${this.name}`;
          };
        },
      },
    );
    const owner = await Owner.create({ name: 'Ann' });
    const order = await Order.create({ name: 'one', owner: owner._id });
    for (const given of await givenBy(order)) {
      assert.equal(given.name, 'one!');
      assert.equal(given.loud, 'ONE!');
      assert.equal(given.greet(), 'hello one!');
      assert.equal(given.populated('owner'), undefined);
      await given.populate('owner');
      assert.equal(given.owner.name, 'Ann');
      assert.ok(await given.owner.lock(LONG_MS));
      assert.ok(await given.owner.release());
    }
  });

  it('are read with the connection’s BSON options, while the token is a Number', async function () {
    const cases = [
      [{ promoteLongs: false }, (value) => value._bsontype === 'Long' && value.toString()],
      [{ promoteValues: false }, (value) => value._bsontype === 'Long' && value.toString()],
    ];
    // The driver of Mongoose 6 has no such option yet.
    if (stage.major > 6)
      cases.push([{ useBigInt64: true }, (v) => typeof v === 'bigint' && `${v}`]);
    for (const [options, show] of cases) {
      const connection = await mongoose.createConnection(stage.uri(), options).asPromise();
      try {
        const schema = new Schema({ count: {}, name: String }).plugin(lockRelease);
        const Order = connection.model(stage.freshName(), schema);
        const order = await Order.create({ name: 'one' });
        await write(order, {
          $set: { count: Long.fromNumber(2 ** 40), 'lockedBy.token': Long.fromNumber(2 ** 41) },
        });
        const [locked, extended, released] = await givenBy(order);
        for (const given of [locked, extended, released]) {
          assert.equal(show(given.count), String(2 ** 40), JSON.stringify(options));
          assert.deepEqual(given.toObject().count, (await load(order)).toObject().count);
          assert.ok(given.locked instanceof Date);
        }
        assert.equal(locked.$lock.token, 2 ** 41 + 1);
        assert.ok(locked.$lock.expires instanceof Date);
      } finally {
        await connection.close();
      }
    }
  });
});

describe('_ids', function () {
  const uuid = new UUID(randomUUID());
  const KINDS = {
    'an ObjectId': [Schema.Types.ObjectId, new ObjectId()],
    'a string': [String, '$where'],
    'an empty string': [String, ''],
    'a number': [Number, 0],
    'a fraction': [Number, -1.5],
    'a date': [Date, new Date(5)],
    'a Buffer': [Buffer, Buffer.from('id')],
    'a Decimal128': [Schema.Types.Decimal128, Decimal128.fromString('1.10')],
    'a boolean': [Boolean, false],
    'an embedded document': [
      new Schema({ a: Number, b: String }, { _id: false }),
      { a: 1, b: 'x' },
    ],
    'Mixed, a UUID': [{}, uuid],
    'Mixed, a Binary': [{}, new Binary(Buffer.from('id'), 0x80)],
    'Mixed, a Long': [{}, Long.fromNumber(2 ** 60)],
    'Mixed, an Int32': [{}, new Int32(7)],
    'Mixed, an object': [{}, { b: 1, a: [2] }],
    'Mixed, what looks like an operator': [{}, { gt: '' }],
    'Mixed, a string like a path': [{}, '$name'],
    ...(Schema.Types.UUID ? { 'a UUID': [Schema.Types.UUID, uuid.toString()] } : {}),
  };

  for (const [kind, [type, value]] of Object.entries(KINDS)) {
    it(`may be ${kind}`, async function () {
      const Order = stage.lockable({ _id: type, name: String });
      const [order] = await Order.create([{ _id: value, name: 'mine' }]);
      const raw = await Order.collection.findOne({});
      await Order.collection.insertOne({ _id: new ObjectId(), name: 'other' });
      for (const doc of [order, await Order.findOne({ name: 'mine' })]) {
        for (const given of await givenBy(doc)) {
          assert.equal(given.name, 'mine');
          assert.deepEqual(given.toObject()._id, order.toObject()._id);
        }
      }
      const after = await Order.collection.findOne({ name: 'mine' });
      assert.deepEqual(after._id, raw._id);
      assert.equal((await Order.collection.findOne({ name: 'other' })).locked, undefined);
    });
  }

  it('and a shard key are taken as they are stored, whatever their getters show', async function () {
    const get = (value) => `shown ${value}`;
    const definition = { _id: { type: String, get }, tenant: { type: String, get }, name: String };
    const Order = stage.lockable(definition, { schema: { shardKey: { tenant: 1 } } });
    const order = await Order.create({ _id: 'one', tenant: 'two', name: 'mine' });
    for (const given of await givenBy(order)) assert.equal(given._id, 'shown one');
  });

  it('that hold an operator’s name find nothing but themselves', async function () {
    const Order = stage.lockable({ _id: {}, name: String });
    await Order.collection.insertOne({ _id: 'victim', name: 'victim' });
    // Such a document cannot be stored; an object with this _id can be made nevertheless.
    for (const _id of [{ $gt: '' }, { $ne: null }, { $exists: true }]) {
      const order = Order.hydrate({ _id, name: 'mine' });
      assert.equal(await order.lock(LONG_MS), null);
      assert.equal(await Order.hydrate({ _id, name: 'mine' }).release(), null);
    }
    assert.deepEqual(await Order.collection.findOne({}), { _id: 'victim', name: 'victim' });
  });
});

describe('timestamps', function () {
  const SCHEMAS = {
    updatedAt: [true, 'updatedAt'],
    'a name of its own': [{ updatedAt: 'changed' }, 'changed'],
    'a nested name': [{ createdAt: 'meta.made', updatedAt: 'meta.changed' }, 'meta.changed'],
  };

  for (const [name, [timestamps, path]] of Object.entries(SCHEMAS)) {
    it(`bump ${name} on lock, extend and release, and nothing else`, async function () {
      const Order = stage.lockable({ name: String }, { schema: { timestamps } });
      const order = await Order.create({ name: 'one' });
      const old = new Date(5);
      const calls = [
        (doc) => doc.lock(LONG_MS),
        (doc) => doc.extend(LONG_MS),
        (doc) => doc.release(),
        async (doc) => (await load(doc)).release(),
      ];
      for (const call of calls) {
        await write(order, { $set: { [path]: old } });
        const before = await stored(order);
        const began = Date.now();
        const given = await call(order);
        assert.ok(given.get(path).getTime() >= began);
        assert.deepEqual((await load(order)).get(path), given.get(path));
        const after = await stored(order);
        assert.deepEqual(after.createdAt, before.createdAt);
        assert.deepEqual(after.meta?.made, before.meta?.made);
      }
      await write(order, { $set: { [path]: old } });
      await order.lock(LONG_MS);
      await write(order, { $set: { [path]: old } });
      assert.equal(await (await load(order)).lock(LONG_MS), null);
      assert.deepEqual((await load(order)).get(path), old, 'a refused lock changes nothing');
    });
  }

  it('take their own clock, and their own type', async function () {
    const Dated = stage.lockable(
      { name: String },
      { schema: { timestamps: { currentTime: () => new Date(12345) } } },
    );
    for (const given of await givenBy(await Dated.create({}))) {
      assert.deepEqual(given.updatedAt, new Date(12345));
    }
    // As Mongoose casts the time for its own updates.
    const Numbered = stage.lockable({ updatedAt: Number }, { schema: { timestamps: true } });
    const numbered = await Numbered.create({});
    const began = Date.now();
    for (const given of await givenBy(numbered)) assert.ok(given.updatedAt >= began);
    assert.equal(typeof (await stored(numbered)).updatedAt, 'number');
  });

  it('do not come where there are none', async function () {
    for (const timestamps of [undefined, false, { updatedAt: false }]) {
      const order = await stage.lockable({}, { schema: { timestamps } }).create({});
      await givenBy(order);
      assert.equal('updatedAt' in (await stored(order)), false);
    }
  });
});

describe('other parts of Mongoose', function () {
  it('a shard key’s fields go into every filter', async function () {
    const Order = stage.lockable(
      { tenant: String, region: { name: String }, name: String },
      { schema: { shardKey: { tenant: 1, 'region.name': 1 } } },
    );
    const order = await Order.create({ tenant: '$a', region: { name: 'north' } });
    const stranger = await load(order);
    const commands = await commandsDuring(Order, async () => {
      assert.ok(await order.lock(LONG_MS));
      assert.ok(await order.extend(LONG_MS));
      assert.ok(await order.release());
      assert.ok(await stranger.release());
    });
    assert.ok(commands.length >= 5);
    for (const { query, filter = query } of commands) {
      assert.deepEqual(filter.tenant, { $eq: '$a' });
      assert.deepEqual(filter['region.name'], { $eq: 'north' });
    }
  });

  it('bring no retryable write: each call is one command, judged by $$NOW', async function () {
    const Order = stage.lockable();
    const order = await Order.create({ name: 'one' });
    const commands = await commandsDuring(Order, async () => {
      await order.lock(LONG_MS);
      await order.release();
    });
    assert.equal(commands.length, 2);
    for (const command of commands) {
      assert.ok(command.findAndModify);
      assert.equal(command.txnNumber, undefined);
      assert.match(JSON.stringify(command.update), /\$\$NOW/);
    }
  });

  it('a read preference of the schema’s leaves the lock on the primary', async function () {
    const Order = stage.lockable({ name: String }, { schema: { read: 'secondary' } });
    const order = new Order({ name: 'one' });
    await order.save();
    for (const given of await givenBy(order)) assert.equal(given.name, 'one');
    assert.ok(await order.release());
  });

  it('a schema that throws at what it does not know takes the lock’s own paths', async function () {
    const Order = stage.lockable(
      { name: String },
      { schema: { strict: 'throw', strictQuery: 'throw', timestamps: true } },
    );
    const order = await Order.create({ name: 'one' });
    const locked = await order.lock(LONG_MS);
    locked.name = 'two';
    await locked.save();
    const { filter } = locked.$lock;
    assert.equal((await Order.updateOne(filter, { name: 'three' })).matchedCount, 1);
    assert.equal((await order.release()).name, 'three');
  });

  it('an _id that was not selected is an error', async function () {
    const Order = stage.lockable();
    await Order.create({ name: 'one' });
    for (const verb of ['lock', 'release']) {
      const order = await Order.findOne().select('-_id name');
      const error = await failureOf(order[verb](...(verb === 'release' ? [] : [LONG_MS])));
      assert.equal(error.code, 'ERR_LOCK_NOT_STORED');
      assert.match(error.message, /_id/);
    }
  });

  it('a session that is in a transaction is refused, one that is not is left aside', async function () {
    const Order = stage.lockable();
    const order = await Order.create({ name: 'one' });
    const session = await stage.connection.startSession();
    try {
      order.$session(session);
      const locked = await order.lock(LONG_MS);
      assert.equal(locked.$session(), null);
      assert.ok(await order.release());
      session.startTransaction();
      const commands = await commandsDuring(Order, async () => {
        for (const verb of ['lock', 'extend', 'release']) {
          const error = await failureOf(order[verb](...(verb === 'release' ? [] : [LONG_MS])));
          assert.ok(error instanceof lockRelease.LockError);
          assert.equal(error.code, 'ERR_LOCK_IN_TRANSACTION');
          assert.match(error.message, new RegExp(`cannot ${verb}`));
        }
      });
      assert.deepEqual(commands, []);
      if (session.inTransaction()) await session.abortTransaction();
      assert.ok(await order.lock(LONG_MS));
    } finally {
      await session.endSession();
    }
  });

  it('a lock outside and the work in a transaction inside go together', async function () {
    // A single server has no transactions.
    if (!(await stage.hasTransactions())) return;
    const Order = stage.lockable();
    const order = await Order.create({ name: 'one' });
    const locked = await order.lock(LONG_MS);
    const session = await stage.connection.startSession();
    try {
      await session.withTransaction(async () => {
        locked.name = 'two';
        await locked.save({ session });
      });
    } finally {
      await session.endSession();
    }
    locked.$session(null);
    assert.equal((await locked.release()).name, 'two');
  });
});

'use strict';
/*
 * What the plugin makes of a schema: the paths, those that are there already, applying it more than once, and that
 * nothing but the lock's own commands can touch or show the holder's record.
 */

const assert = require('node:assert/strict');
const stage = require('./stage');
const { LONG_MS, failureOf, load, lockRelease, mongoose, stored, write } = stage;
const { Schema } = mongoose;

/** A document as it was stored before the plugin came. */
async function storedBefore(Model, fields = {}) {
  const { insertedId } = await Model.collection.insertOne({ name: 'before', ...fields });
  return Model.findById(insertedId);
}

/** A round of lock, refused lock, extend, release and save(). */
async function roundOf(doc) {
  const locked = await doc.lock(LONG_MS);
  assert.ok(locked.$lock.held);
  assert.equal(await (await load(doc)).lock(LONG_MS), null);
  locked.name = 'handled';
  await locked.save();
  assert.equal((await doc.release()).name, 'handled');
  assert.equal((await stored(doc)).lockedBy.token, 1);
}

describe('schema', function () {
  describe('`locked`', function () {
    it('is stored with new documents as 1970, however they are made', async function () {
      const Order = stage.lockable();
      const created = await Order.create({ name: 'created' });
      const saved = await new Order({ name: 'saved' }).save();
      const [inserted] = await Order.insertMany([{ name: 'inserted' }]);
      await Order.updateOne({ name: 'upserted' }, { name: 'upserted' }, { upsert: true });
      for (const { locked } of [created, saved, inserted]) assert.deepEqual(locked, new Date(0));
      for (const raw of await Order.collection.find().toArray()) {
        if (raw.name !== 'upserted') assert.deepEqual(raw.locked, new Date(0));
        assert.equal('lockedBy' in raw, false);
        await roundOf(await Order.findById(raw._id));
      }
    });

    it('is not written by save() to a document from before the plugin, not even over a held lock', async function () {
      const Order = stage.lockable();
      const order = await storedBefore(Order);
      assert.equal(order.locked, undefined);
      const other = await load(order);
      await other.lock(LONG_MS);
      const before = await stored(order);
      order.name = 'saved';
      await order.save();
      assert.deepEqual(await stored(order), { ...before, name: 'saved' });
      assert.equal(other.$lock.held, true);
      const bare = await storedBefore(Order);
      bare.name = 'saved';
      await bare.save();
      assert.equal('locked' in (await stored(bare)), false);
      bare.name = 'before';
      await roundOf(bare);
    });

    it('is not written by save() of a document that was loaded without it', async function () {
      const Order = stage.lockable();
      const order = await Order.create({ name: 'one' });
      for (const projection of ['name', '-locked']) {
        const partial = await Order.findById(order._id).select(projection);
        await order.lock(LONG_MS);
        const { locked } = await stored(order);
        partial.name = `${projection} saved`;
        await partial.save();
        assert.deepEqual((await stored(order)).locked, locked);
        await order.release();
      }
    });

    it('may be there already as a Date, with its options, and is used as it is', async function () {
      const Order = stage.lockable({ name: String, locked: { type: Date, alias: 'busyUntil' } });
      const order = await Order.create({ name: 'one' });
      assert.equal(order.locked, undefined);
      assert.equal('locked' in (await stored(order)), false);
      const locked = await order.lock(LONG_MS);
      assert.deepEqual(locked.busyUntil, locked.locked);
      assert.ok(await order.release());
      await roundOf(await Order.create({ name: 'two' }));
    });

    for (const [kind, value, expected] of [
      ['a function', () => new Date(5), new Date(5)],
      ['a value', new Date(7), new Date(7)],
      ['Date.now', Date.now, undefined],
    ]) {
      it(`may be there with ${kind} for a default, which is for new documents alone`, async function () {
        const Order = stage.lockable({ name: String, locked: { type: Date, default: value } });
        const order = await Order.create({ name: 'one' });
        assert.deepEqual((await stored(order)).locked, expected ?? order.locked);
        assert.ok(order.locked instanceof Date);
        const old = await storedBefore(Order);
        assert.equal(old.locked, undefined);
        old.name = 'saved';
        await old.save();
        assert.equal('locked' in (await stored(old)), false);
        await roundOf(old);
      });
    }

    it('may be there on the schema with a default that looks at the document', async function () {
      const locked = {
        type: Date,
        default() {
          return this.name === 'early' ? new Date(3) : undefined;
        },
      };
      const Order = stage.lockable({ name: String, locked });
      const [early, late] = await Order.create([{ name: 'early' }, { name: 'late' }]);
      assert.deepEqual(early.locked, new Date(3));
      assert.equal(late.locked, undefined);
    });

    for (const [kind, definition] of [
      ['a String', { locked: String }],
      ['a Number', { locked: Number }],
      ['a Boolean', { locked: Boolean }],
      ['Mixed', { locked: {} }],
      ['a nested object', { locked: { by: String } }],
      ['an array of dates', { locked: [Date] }],
      ['a subdocument', { locked: new Schema({ at: Date }) }],
    ]) {
      it(`makes the plugin throw when it is there as ${kind}`, function () {
        const schema = new Schema(definition);
        assert.throws(() => schema.plugin(lockRelease), /"?locked"?.*Date.*path/s);
        schema.plugin(lockRelease, { path: 'busy' });
        assert.ok(schema.path('busy'));
      });
    }

    it('makes the plugin throw when it is there as a virtual', function () {
      const schema = new Schema({ name: String });
      schema.virtual('locked').get(() => true);
      assert.throws(() => schema.plugin(lockRelease), /locked/);
    });
  });

  describe('`lockedBy`', function () {
    it('makes the plugin throw when the schema has it already, and names the option', function () {
      for (const definition of [
        { lockedBy: String },
        { lockedBy: { user: String } },
        { lockedBy: { type: Schema.Types.ObjectId, ref: 'User' } },
        { locked: Date, lockedBy: {} },
      ]) {
        const schema = new Schema(definition);
        assert.throws(() => schema.plugin(lockRelease), /lockedBy.*path/s);
        schema.plugin(lockRelease, { path: 'busy' });
        assert.ok(schema.path('busyBy'));
      }
    });

    it('shows in no query, no lean result, no JSON, no answer of lock, extend and release', async function () {
      const Order = stage.lockable();
      const order = await Order.create({ name: 'mine' });
      const locked = await order.lock(LONG_MS);
      const extended = await locked.extend(LONG_MS);
      const found = await Order.find();
      const shown = [order, locked, extended, ...found];
      shown.push(await Order.findOne({ _id: order._id }).lean());
      shown.push(await Order.findOneAndUpdate({ _id: order._id }, { name: 'x' }).lean());
      shown.push(await order.release());
      for (const doc of shown) {
        assert.equal(doc.lockedBy, undefined);
        assert.equal('lockedBy' in (doc.toObject?.() ?? doc), false);
        assert.equal(JSON.stringify(doc).includes('lease'), false);
      }
    });

    it('cannot be written by what a request brings into a stored document', async function () {
      const Order = stage.lockable({ name: String });
      const order = await Order.create({ name: 'mine' });
      const locked = await order.lock(LONG_MS);
      const before = await stored(order);
      const body = () => ({ name: `${Math.random()}`, lockedBy: { token: 99, label: 'thief' } });
      const attempts = [
        (doc) => doc.set(body()),
        (doc) => doc.set({ name: 'x', lockedBy: null }),
        (doc) => doc.set('lockedBy.token', 99),
        (doc) => doc.set('lockedBy', undefined),
        (doc) => Object.assign(doc, body()),
        (doc) => doc.overwrite({ ...body(), locked: doc.locked }),
        (doc) => doc.$set(body()),
      ];
      for (const attempt of attempts) {
        for (const doc of [locked, await load(order), await load(order).select('+lockedBy')]) {
          try {
            attempt(doc);
            await doc.save();
          } catch (error) {
            // A strict Mongoose may say no by itself, which is as good.
            assert.equal(error.name, 'StrictModeError', error.stack);
          }
          assert.deepEqual((await stored(order)).lockedBy, before.lockedBy, String(attempt));
        }
      }
      await Order.updateOne({ _id: order._id }, body());
      await Order.findOneAndUpdate({ _id: order._id }, { $set: { lockedBy: null } });
      assert.deepEqual((await stored(order)).lockedBy, before.lockedBy);
      assert.ok(await order.release());
    });
  });

  describe('names', function () {
    for (const verb of ['lock', 'release']) {
      it(`makes the plugin throw when a field is called ${verb}`, function () {
        for (const definition of [{ [verb]: String }, { [verb]: { by: String } }]) {
          const schema = new Schema(definition);
          assert.throws(() => schema.plugin(lockRelease), new RegExp(`"${verb}".*field`));
        }
      });
    }

    it('leaves a field called extend, and a method of that name, to the schema', async function () {
      const Field = stage.lockable({ name: String, extend: Number });
      const field = await Field.create({ name: 'one', extend: 5 });
      assert.equal(field.extend, 5);
      const locked = await field.lock(LONG_MS);
      assert.equal(locked.extend, 5);
      assert.ok(await field.release());

      const schema = new Schema({ name: String });
      schema.methods.extend = () => 'own';
      const Method = stage.lockable(schema);
      const method = await Method.create({ name: 'one' });
      assert.equal(method.extend(), 'own');
      await roundOf(method);
    });

    it('works on a schema with another typeKey', async function () {
      const definition = {
        name: { $type: String },
        place: { type: { $type: String }, at: [Number] },
      };
      const Order = stage.lockable(definition, { schema: { typeKey: '$type' } });
      assert.equal(Order.schema.path('locked').instance, 'Date');
      const order = await Order.create({ name: 'one', place: { type: 'Point', at: [1] } });
      assert.deepEqual(order.locked, new Date(0));
      await roundOf(order);
      assert.equal((await load(order)).lockedBy, undefined);
    });
  });

  describe('applied more than once', function () {
    it('is the same as once', async function () {
      const Order = stage.lockable(
        new Schema({ name: String }).plugin(lockRelease).plugin(lockRelease, {}),
      );
      await roundOf(await Order.create({ name: 'one' }));
    });

    it('holds what was asked for explicitly, before or after', async function () {
      for (const options of [
        [undefined, { label: 'asked' }],
        [{ label: 'asked' }, undefined],
      ]) {
        const schema = new Schema({ name: String });
        for (const each of options) schema.plugin(lockRelease, each);
        const Order = stage.connection.model(stage.freshName(), schema);
        const order = await Order.create({ name: 'one' });
        await order.lock(LONG_MS);
        assert.equal(order.$lock.label, 'asked');
      }
    });

    it('works on a clone of the schema', async function () {
      const schema = new Schema({ name: String }).plugin(lockRelease).clone();
      await roundOf(await stage.lockable(schema).create({ name: 'one' }));
    });

    it('works on a base model and on its discriminators', async function () {
      const Animal = stage.lockable({ name: String }, { schema: { discriminatorKey: 'kind' } });
      const name = stage.freshName('Dog');
      const schema = new Schema({ tricks: [String] }).plugin(lockRelease);
      const Dog = Animal.discriminator(name, schema);
      const dog = await Dog.create({ name: 'Rex', tricks: ['sit'] });
      assert.deepEqual(dog.locked, new Date(0));
      await roundOf(dog);
      assert.ok((await (await Animal.findById(dog._id)).lock(LONG_MS)) instanceof Dog);
    });

    it('works on discriminators alone', async function () {
      const base = new Schema({ name: String }, { discriminatorKey: 'kind' });
      const Animal = stage.connection.model(stage.freshName(), base);
      const schema = new Schema({ tricks: [String] }).plugin(lockRelease);
      const Dog = Animal.discriminator(stage.freshName('Dog'), schema);
      await roundOf(await Dog.create({ name: 'Rex' }));
      assert.equal((await Animal.create({ name: 'any' })).lock, undefined);
    });
  });

  describe('registered globally', function () {
    let own;

    before(async function () {
      own = new mongoose.Mongoose();
      own.set('strictQuery', true);
      own.plugin(lockRelease);
      await own.connect(stage.uri());
    });

    after(() => own.disconnect());

    it('works for every model, also with the plugin on the schema as well', async function () {
      const One = own.model(stage.freshName(), new own.Schema({ name: String }));
      await roundOf(await One.create({ name: 'one' }));
      const schema = new own.Schema({ name: String }).plugin(lockRelease, { label: 'asked' });
      const Two = own.model(stage.freshName(), schema);
      const two = await Two.create({ name: 'two' });
      await two.lock(LONG_MS);
      assert.equal(two.$lock.label, 'asked');
    });

    it('leaves child documents without a lock, and refuses to lock one', async function () {
      const line = new own.Schema({ sku: String });
      const address = new own.Schema({ city: String });
      const Order = own.model(
        stage.freshName(),
        new own.Schema({ name: String, lines: [line], address, tree: { to: address } }),
      );
      const order = await Order.create({
        name: 'one',
        lines: [{ sku: 'a' }],
        address: { city: 'b' },
        tree: { to: { city: 'c' } },
      });
      const raw = await stored(order);
      assert.deepEqual(raw.locked, new Date(0));
      for (const child of [raw.lines[0], raw.address, raw.tree.to]) {
        assert.equal('locked' in child || 'lockedBy' in child, false);
      }
      for (const child of [order.lines[0], order.address, order.tree.to]) {
        for (const verb of ['lock', 'release', 'extend']) {
          const error = await failureOf(child[verb](verb === 'release' ? undefined : LONG_MS));
          assert.ok(error instanceof lockRelease.LockError);
          assert.equal(error.code, 'ERR_LOCK_SUBDOCUMENT');
        }
      }
      const locked = await order.lock(LONG_MS);
      assert.equal(locked.lines[0].sku, 'a');
      locked.lines.push({ sku: 'd' });
      locked.address.city = 'e';
      await locked.save();
      const saved = await stored(order);
      assert.deepEqual(
        saved.lines.map((child) => Object.keys(child).toSorted()),
        [
          ['_id', 'sku'],
          ['_id', 'sku'],
        ],
      );
      assert.equal(saved.address.city, 'e');
      assert.equal((await order.release()).lines[1].sku, 'd');
    });

    it('works with discriminators', async function () {
      const Animal = own.model(stage.freshName(), new own.Schema({ name: String }));
      const Cat = Animal.discriminator(stage.freshName('Cat'), new own.Schema({ lives: Number }));
      const cat = await Cat.create({ name: 'Tom', lives: 9 });
      await roundOf(cat);
      assert.equal((await (await Animal.findById(cat._id)).lock(LONG_MS)).lives, 9);
    });
  });

  it('refuses to lock a subdocument whose own schema has the plugin', async function () {
    const line = new Schema({ sku: String }).plugin(lockRelease);
    const Order = stage.connection.model(stage.freshName(), new Schema({ lines: [line] }));
    const order = await Order.create({ lines: [{ sku: 'a' }] });
    const error = await failureOf(order.lines[0].lock(LONG_MS));
    assert.equal(error.code, 'ERR_LOCK_SUBDOCUMENT');
    assert.match(error.message, /subdocument/);
    await write(order, { $set: { touched: true } });
    assert.equal('locked' in (await stored(order)).lines[0], false);
  });
});

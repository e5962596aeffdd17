'use strict';
/*
 * The cases in which ours and the original come to the same. Each takes a world and resolves to what can be compared.
 */

const assert = require('node:assert/strict');
const { load, lockedAt, moment, momentsOf, raw, shape, write } = require('./world');

/** name -> case; each resolves to what can be compared. */
const SAME = {
  'lock of a free document': async (world) => {
    const order = await world.model().create({ name: 'one', total: 1 });
    order.total = 5;
    const locked = await world.lock(order);
    return [
      shape(locked),
      shape(order).modified,
      order.total,
      await lockedAt(order),
      locked !== order,
    ];
  },
  'lock of a document that has changed in the meantime': async (world) => {
    const order = await world.model().create({ name: 'old' });
    await write(order, { name: 'new', unknown: 1 });
    const locked = await world.lock(order);
    return [shape(locked), locked.get('unknown'), order.name];
  },
  'lock of a locked document': async (world) => {
    const order = await world.model().create({ name: 'one' });
    const other = await load(order);
    const locked = await world.lock(order);
    const before = await raw(order);
    const results = [];
    for (const doc of [order, other, locked]) results.push(shape(await world.lock(doc)));
    assert.deepEqual(await raw(order), before);
    return results;
  },
  'lock after the duration': async (world) => {
    const order = await world.model().create({ name: 'one' });
    const first = shape(await world.lock(order, 1));
    let again;
    do again = await world.lock(order);
    while (!again);
    return [first, shape(again)];
  },
  'lock for 0 ms': async (world) => {
    const order = await world.model().create({ name: 'one' });
    const first = await world.lock(order, 0);
    let again;
    do again = await world.lock(order);
    while (!again);
    return [shape(first), shape(again)];
  },
  'lock and release of a deleted document': async (world) => {
    const Order = world.model();
    const order = await Order.create({ name: 'one' });
    await Order.deleteOne({ _id: order._id });
    return [shape(await world.lock(order)), await Order.countDocuments()];
  },
  'release by the object that was locked': async (world) => {
    const order = await world.model().create({ name: 'one' });
    await world.lock(order);
    await write(order, { name: 'two' });
    const released = shape(await world.release(order));
    return [released, await lockedAt(order), shape(await world.lock(await load(order)))];
  },
  'release by the object that lock gave': async (world) => {
    const order = await world.model().create({ name: 'one' });
    const locked = await world.lock(order);
    return [shape(await world.release(locked)), shape(await world.lock(order))];
  },
  'release by an object that never locked, of another’s lock': async (world) => {
    const order = await world.model().create({ name: 'one' });
    await world.lock(order);
    const other = await load(order);
    return [shape(await world.release(other)), shape(await world.lock(other))];
  },
  'release of what is not locked, not stored, or gone': async (world) => {
    const Order = world.model();
    const order = await Order.create({ name: 'one' });
    const results = [shape(await world.release(order))];
    await Order.deleteOne({ _id: order._id });
    results.push(shape(await world.release(await order)));
    results.push(shape(await world.release(new Order({ name: 'new' }))));
    return [results, await Order.countDocuments()];
  },
  'two locks at once of one document': async (world) => {
    const order = await world.model().create({ name: 'one' });
    const results = await Promise.all([world.lock(order), world.lock(order)]);
    return results.filter(Boolean).map(shape);
  },
  'locks at once of many documents by many': async (world) => {
    const Order = world.model();
    const orders = await Order.create(Array.from({ length: 20 }, (_, total) => ({ total })));
    const results = await Promise.all(
      orders.flatMap((order) => [order, order, order].map((each) => world.lock(each))),
    );
    const winners = results.filter(Boolean).map((doc) => doc.total);
    return winners.toSorted((a, b) => a - b);
  },
  'save of the document that lock gave, then release': async (world) => {
    const order = await world.model({ name: String, tags: [String] }).create({ tags: ['a'] });
    const locked = await world.lock(order);
    locked.tags.push('b');
    locked.name = 'handled';
    await locked.save();
    const at = await lockedAt(order);
    return [at, shape(await world.release(order)), shape(await load(order)).fields];
  },
  'what documents look like to those who read them': async (world) => {
    const Order = world.model();
    const order = await Order.create({ name: 'one' });
    const locked = await world.lock(order);
    const lean = await Order.findById(order._id).lean();
    const found = await Order.findOneAndUpdate({ _id: order._id }, { name: 'two' });
    return [order, locked, lean, found, JSON.parse(JSON.stringify(locked))].map((doc) =>
      Object.keys(doc.toObject?.() ?? doc).toSorted(),
    );
  },
  timestamps: async (world) => {
    const results = [];
    for (const timestamps of [true, { updatedAt: 'changed' }, { createdAt: false }, undefined]) {
      const Order = world.model({ name: String }, { timestamps });
      const order = await Order.create({ name: 'one' });
      for (const verb of ['lock', 'release']) {
        await write(order, {
          createdAt: new Date(5),
          updatedAt: new Date(6),
          changed: new Date(7),
        });
        const doc = await world[verb](order);
        results.push([shape(doc), await momentsOf(order)]);
      }
    }
    return results;
  },
  discriminators: async (world) => {
    const Animal = world.model({ name: String }, { discriminatorKey: 'kind' });
    const name = `${Animal.modelName}Dog`;
    const schema = world.schema({ tricks: [String], hidden: { type: String, select: false } });
    const Dog = Animal.discriminator(name, schema.plugin(world.plugin, name));
    const dog = await Dog.create({ name: 'Rex', tricks: ['sit'], hidden: 'own' });
    const results = [];
    for (const doc of [dog, await Animal.findById(dog._id), await Animal.create({ name: 'any' })]) {
      results.push(shape(await world.lock(doc)), shape(await world.release(doc)));
    }
    await write(dog, { kind: 'Other' });
    return [...results, shape(await world.lock(dog))];
  },
  'a lock through another model': async (world) => {
    const Invoice = world.model();
    const schema = world.schema().plugin(world.plugin, Invoice.modelName);
    const Draft = world.connection.model(`${Invoice.modelName}Draft`, schema);
    const draft = await Draft.create({ name: 'draft' });
    const none = shape(await world.lock(draft));
    await Invoice.create({ _id: draft._id, name: 'invoice' });
    await new Promise((resolve) => {
      setTimeout(resolve, 5);
    });
    return [
      none,
      shape(await world.lock(await load(draft))),
      await lockedAt(await Invoice.findOne()),
    ];
  },
  '_ids of every type': async (world) => {
    const { Schema } = world.base;
    const results = [];
    for (const [type, _id] of [
      [Schema.Types.ObjectId, '0123456789abcdef01234567'],
      [String, '$name'],
      [String, ''],
      [Number, 0],
      [Date, new Date(5)],
      [Buffer, Buffer.from('id')],
      [Schema.Types.Decimal128, '1.10'],
      [new Schema({ a: Number, b: String }, { _id: false }), { a: 1, b: 'x' }],
      [{}, { a: 1, b: 'x' }],
      ...(Schema.Types.UUID ? [[Schema.Types.UUID, '00000000-0000-4000-8000-000000000001']] : []),
    ]) {
      const Order = world.model({ _id: type, name: String });
      await Order.create([{ _id, name: 'one' }]);
      const order = await Order.findOne();
      const other = await Order.findOne();
      const locked = await world.lock(order);
      results.push([
        shape(locked),
        shape(await world.lock(other)),
        shape(await world.release(order)),
      ]);
      assert.deepEqual(locked.toObject()._id, order.toObject()._id);
    }
    return results;
  },
  'getters, virtuals, methods, hidden paths and defaults': async (world) => {
    const hidden = { type: String, select: false, default: 'default' };
    const definition = {
      name: { type: String, get: (name) => `${name}!` },
      hidden,
      nested: { hidden, shown: { type: String, default: 'shown' } },
      parts: [world.schema({ hidden, shown: String }, { _id: false })],
      map: { type: Map, of: Number },
      mixed: {},
    };
    const Order = world.model(definition, {}, (schema) => {
      schema.virtual('loud').get(function loud() {
        return this.name.toUpperCase();
      });
      schema.methods.greet = function greet() {
        return `hello ${this.name}`;
      };
    });
    const order = await Order.create({
      name: 'one',
      hidden: 'own',
      nested: { hidden: 'own' },
      parts: [{ hidden: 'own', shown: 'yes' }],
      map: { a: 1 },
      mixed: { any: [1] },
    });
    const results = [];
    for (const doc of [await world.lock(order), await world.release(order)]) {
      results.push(shape(doc), doc.name, doc.loud, doc.greet(), doc.map.get('a'));
      results.push(doc.isSelected('hidden'), doc.isSelected('nested.shown'));
      doc.name = 'two';
      await doc.save();
      const { hidden: own, nested, parts } = await raw(order);
      results.push(own, nested, parts[0].hidden);
    }
    return results;
  },
  'populate of what lock gave': async (world) => {
    const Owner = world.model();
    const ref = { type: world.base.Schema.Types.ObjectId, ref: Owner.modelName };
    const Order = world.model({ owner: ref });
    const owner = await Owner.create({ name: 'Ann' });
    const order = await Order.create({ owner: owner._id });
    await order.populate('owner');
    const locked = await world.lock(order);
    const before = locked.populated('owner');
    await locked.populate('owner');
    return [before, locked.owner.name, order.owner.name];
  },
  'init hooks': async (world) => {
    const ran = [];
    const Order = world.model(undefined, undefined, (schema) => {
      schema.post('init', (doc) => void ran.push(moment(doc.locked)));
      schema.pre('save', async () => void ran.push('save'));
      schema.post('save', async () => void ran.push('saved'));
    });
    const order = await Order.create({ name: 'one' });
    await world.lock(order);
    await world.release(order);
    return ran;
  },
  'a version key': async (world) => {
    const Order = world.model({ name: String }, { versionKey: 'version' });
    const order = await Order.create({ name: 'one' });
    return [shape(await world.lock(order)), shape(await world.release(order))];
  },
  'another database on the same connection': async (world) => {
    const Order = world.model();
    const other = world.connection.useDb(`${world.connection.name}_other`);
    const There = other.model(Order.modelName, Order.schema);
    const order = await There.create({ name: 'there' });
    const results = [shape(await world.lock(order)), await Order.countDocuments()];
    results.push(await lockedAt(order), shape(await world.release(order)));
    await other.dropDatabase();
    return results;
  },
  'an error of the server’s': async (world) => {
    const Order = world.model();
    const order = await Order.create({ name: 'one' });
    await Order.db.db.command({
      collMod: Order.collection.collectionName,
      validator: { total: { $exists: true } },
    });
    const error = await world.lock(order);
    return [shape(error), error instanceof world.base.mongo.MongoServerError, error.codeName];
  },
};

module.exports = SAME;

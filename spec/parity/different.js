'use strict';
/*
 * The differences on purpose: why each is there, and what the case comes to with the original and with ours.
 */

const { LONG_MS, lapse, load, lockedAt, moment, raw, shape, takeOver, write } = require('./world');

/** name -> { original, ours, run }: the differences on purpose, with what both come to. */
const DIFFERENT = {
  'the plugin without a model’s name': {
    why: 'the document’s own model is used',
    original: 'modelName is required',
    ours: 'taken',
    run: (world) => {
      try {
        world.schema().plugin(world.plugin);
        return 'taken';
      } catch (error) {
        return error.message;
      }
    },
  },
  'a call without a callback': {
    why: 'it returns a promise',
    original: 'undefined',
    ours: 'Promise',
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      const result = order.lock(LONG_MS);
      await result;
      return result?.constructor.name ?? `${result}`;
    },
  },
  'middleware of findOneAndUpdate': {
    why: 'the commands do not go through Mongoose’s queries',
    original: ['pre', 'post', 'pre', 'post'],
    ours: [],
    run: async (world) => {
      const ran = [];
      const Order = world.model(undefined, undefined, (schema) => {
        schema.pre('findOneAndUpdate', async () => void ran.push('pre'));
        schema.post('findOneAndUpdate', async () => void ran.push('post'));
      });
      const order = await Order.create({ name: 'one' });
      await world.lock(order);
      await world.release(order);
      return ran;
    },
  },
  'release after a refused lock': {
    why: '`finally { release() }` must not free another’s lock',
    original: ['document', 'now'],
    ours: ['null', 'ahead, 10 min'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      const refused = await load(order);
      await world.lock(order);
      await world.lock(refused);
      const result = await world.release(refused);
      return [result ? 'document' : 'null', await lockedAt(order)];
    },
  },
  'release after the lock was lost': {
    why: 'only the holder releases',
    original: ['document', 'now'],
    ours: ['null', 'ahead, 10 min'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      await world.lock(order);
      await lapse(order);
      await takeOver(world, order);
      const result = await world.release(order);
      return [result ? 'document' : 'null', await lockedAt(order)];
    },
  },
  'a second release, when another has locked since': {
    why: 'only the holder releases',
    original: ['document', 'now'],
    ours: ['null', 'ahead, 10 min'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      await world.lock(order);
      await world.release(order);
      await takeOver(world, order);
      const result = await world.release(order);
      return [result ? 'document' : 'null', await lockedAt(order)];
    },
  },
  'save of a holder whose lock another has taken': {
    why: 'a lost holder must not overwrite',
    original: ['saved', 'late'],
    ours: ['LockError ERR_LOCK_LOST', 'one'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      const locked = await world.lock(order);
      await lapse(order);
      await takeOver(world, order);
      locked.name = 'late';
      const result = await locked.save().then(() => 'saved', shape);
      return [result, (await raw(order)).name];
    },
  },
  'lock of documents without `locked`, or with null': {
    why: 'documents from before the plugin can be locked',
    original: [null, null],
    ours: ['ahead, 10 min', 'ahead, 10 min'],
    run: async (world) => {
      const Order = world.model();
      const results = [];
      for (const fields of [{}, { locked: null }]) {
        const { insertedId } = await Order.collection.insertOne({ name: 'bare', ...fields });
        const locked = await world.lock(await Order.findById(insertedId));
        results.push(locked && moment(locked.locked));
      }
      return results;
    },
  },
  'the default of `locked`': {
    why: 'lockable at once, whatever the client’s clock says',
    original: 'now',
    ours: '1970',
    run: async (world) => moment((await world.model().create({})).locked),
  },
  'save of a document from before the plugin': {
    why: 'it must not write over a lock that was taken in the meantime',
    original: ['now', 'now'],
    ours: ['undefined', 'ahead, 10 min'],
    run: async (world) => {
      const Order = world.model();
      const { insertedId } = await Order.collection.insertOne({ name: 'bare' });
      const order = await Order.findById(insertedId);
      const loaded = moment(order.locked);
      await write(order, { locked: new Date(Date.now() + LONG_MS) });
      order.name = 'saved';
      await order.save();
      return [loaded, await lockedAt(order)];
    },
  },
  'lock of a document that was never stored': {
    why: 'an error, where null would read as locked by another',
    original: null,
    ours: 'LockError ERR_LOCK_NOT_STORED',
    run: async (world) => shape(await world.lock(new (world.model())({ name: 'new' }))),
  },
  'lock for what is no duration': {
    why: 'an error that names the argument, and nothing is sent',
    original: {
      NaN: 'CastError',
      Infinity: 'CastError',
      '-1000': 'locked until now',
      undefined: 'CastError',
      null: 'locked until now',
      10: 'CastError',
    },
    ours: {
      NaN: 'RangeError ERR_LOCK_ARGUMENT',
      Infinity: 'RangeError ERR_LOCK_ARGUMENT',
      '-1000': 'RangeError ERR_LOCK_ARGUMENT',
      undefined: 'TypeError ERR_LOCK_ARGUMENT',
      null: 'TypeError ERR_LOCK_ARGUMENT',
      10: 'TypeError ERR_LOCK_ARGUMENT',
    },
    run: async (world) => {
      const Order = world.model();
      const results = {};
      for (const duration of [NaN, Infinity, -1000, undefined, null, '10']) {
        const result = await world.call(await Order.create({ name: 'one' }), 'lock', duration);
        results[String(duration)] =
          result instanceof Error ? shape(result) : `locked until ${moment(result?.locked)}`;
      }
      return results;
    },
  },
  'a model’s name that there is not': {
    why: 'the callback gets the error; the call does not throw',
    original: 'thrown: MissingSchemaError',
    ours: 'MissingSchemaError',
    run: async (world) => {
      const schema = world.schema().plugin(world.plugin, 'NoSuchModel');
      const Order = world.connection.model('OrderOfNoModel', schema);
      const order = await Order.create({ name: 'one' });
      return world.lock(order).then(shape, (error) => `thrown: ${error.name}`);
    },
  },
  'a document whose session is in a transaction': {
    why: 'waiting for one’s own uncommitted write would hang',
    original: ['ahead, 10 min', 'now'],
    ours: ['LockError ERR_LOCK_IN_TRANSACTION', 'LockError ERR_LOCK_IN_TRANSACTION'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      const session = await world.connection.startSession();
      session.startTransaction();
      order.$session(session);
      const results = [];
      for (const verb of ['lock', 'release']) {
        const result = await world[verb](order);
        results.push(result instanceof Error ? shape(result) : moment(result.locked));
      }
      await session.abortTransaction();
      await session.endSession();
      return results;
    },
  },
  'what is stored': {
    why: 'the holder’s record',
    original: ['__v', '_id', 'locked', 'name'],
    ours: ['__v', '_id', 'locked', 'lockedBy', 'name'],
    run: async (world) => {
      const order = await world.model().create({ name: 'one' });
      await world.lock(order);
      return Object.keys(await raw(order)).toSorted();
    },
  },
};

module.exports = DIFFERENT;

'use strict';
/*
 * What is refused before anything is sent: arguments of the methods, and options of the plugin. Each refusal names
 * the argument and the value.
 */

const assert = require('node:assert/strict');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, lockRelease, mongoose } = stage;

const LAST_DATE = 8.64e15;

/** Asserts that `error` refuses the argument `name` because of what the message shows. */
function isRefusal(error, Type, name, shown) {
  assert.ok(error instanceof Type, `${error?.name} should be ${Type.name}: ${error?.message}`);
  assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
  assert.ok(error.message.includes(name), `${JSON.stringify(error.message)} names ${name}`);
  assert.ok(error.message.includes(shown), `${JSON.stringify(error.message)} shows ${shown}`);
}

describe('arguments', function () {
  let Order;
  let order;

  before(async function () {
    Order = stage.lockable();
  });

  beforeEach(async function () {
    order = await Order.create({ name: 'mine' });
  });

  const BAD_DURATIONS = [
    ['NaN', NaN, RangeError],
    ['Infinity', Infinity, RangeError],
    ['-Infinity', -Infinity, RangeError],
    ['-1', -1, RangeError],
    ['-0.5', -0.5, RangeError],
    ['8640000000000000', LAST_DATE, RangeError],
    ['9007199254740991', Number.MAX_SAFE_INTEGER, RangeError],
    ['1.7976931348623157e+308', Number.MAX_VALUE, RangeError],
    ["'10'", '10', TypeError],
    ["''", '', TypeError],
    ['null', null, TypeError],
    ['undefined', undefined, TypeError],
    ['true', true, TypeError],
    ['10n', 10n, TypeError],
    ['Symbol(ms)', Symbol('ms'), TypeError],
    ['ms: 10', { ms: 10 }, TypeError],
    ['10', [10], TypeError],
    ['Number: 10', Object(10), TypeError],
    ['1970-01-01', new Date(10), TypeError],
  ];

  for (const [shown, value, Type] of BAD_DURATIONS) {
    it(`refuse ${typeof value} ${shown} for a duration, and send nothing`, async function () {
      const commands = await commandsDuring(Order, async () => {
        for (const verb of ['lock', 'extend']) {
          isRefusal(await failureOf(order[verb](value)), Type, 'duration', shown);
          const error = await new Promise((resolve) => {
            order[verb](value, resolve);
          });
          isRefusal(error, Type, 'duration', shown);
        }
      });
      assert.deepEqual(commands, []);
      assert.equal(order.$lock, undefined);
    });
  }

  it('allow any duration that ends within the range of Date', async function () {
    const duration = LAST_DATE - Date.now() - 3600000;
    const locked = await order.lock(duration);
    assert.ok(locked.locked.getTime() > LAST_DATE - 7200000);
    assert.ok(locked.locked.getTime() <= LAST_DATE);
    assert.equal(order.$lock.held, true);
    assert.ok(await order.extend(duration));
    assert.ok(await order.release());
  });

  it('refuse option names that they do not know, by name', async function () {
    for (const [name, value] of [
      ['waits', 10],
      ['Wait', 10],
      ['duration', 10],
      ['session', null],
    ]) {
      isRefusal(
        await failureOf(order.lock(LONG_MS, { [name]: value })),
        TypeError,
        `options.${name}`,
        `${value}`,
      );
    }
    assert.equal((await stage.stored(order)).lockedBy, undefined);
  });

  it('refuse options that are no object', async function () {
    for (const [shown, options] of [
      ['10', 10],
      ["'wait'", 'wait'],
      ['true', true],
      ['[]', []],
    ]) {
      isRefusal(await failureOf(order.lock(LONG_MS, options)), TypeError, 'options', shown);
    }
  });
});

describe('plugin options', function () {
  const apply = (options, definition = { name: String }) =>
    new mongoose.Schema(definition).plugin(lockRelease, options);

  const BAD_OPTIONS = {
    modelName: [
      ['7', 7],
      ["''", ''],
      ['null', null],
    ],
    path: [
      ['7', 7],
      ["''", ''],
      ["'$busy'", '$busy'],
      ["'a..b'", 'a..b'],
      ["'.a'", '.a'],
      ["'a.'", 'a.'],
      ['null', null],
    ],
    label: [
      ['7', 7],
      ['null', null],
      ['{}', {}],
    ],
    fence: [
      ['0', 0],
      ["'false'", 'false'],
      ['null', null],
    ],
    exitTimeout: [
      ['-1', -1],
      ['NaN', NaN],
      ['Infinity', Infinity],
      ["'10'", '10'],
    ],
    writeConcern: [
      ["'majority'", 'majority'],
      ['1', 1],
      ['null', null],
      ['[]', []],
    ],
  };

  for (const [name, values] of Object.entries(BAD_OPTIONS)) {
    it(`refuse a wrong ${name}`, function () {
      for (const [shown, value] of values) {
        assert.throws(
          () => apply({ [name]: value }),
          (error) => {
            isRefusal(error, Error, name, shown);
            return error instanceof TypeError || error instanceof RangeError;
          },
          `${name}: ${shown}`,
        );
      }
    });
  }

  it('refuse a write concern that does not wait for an answer, or has names that it does not know', function () {
    for (const [name, shown, writeConcern] of [
      ['w', '0', { w: 0 }],
      ['w', '-1', { w: -1 }],
      ['w', '1.5', { w: 1.5 }],
      ['w', "''", { w: '' }],
      ['fsync', 'true', { fsync: true }],
    ]) {
      assert.throws(
        () => apply({ writeConcern }),
        (error) => {
          isRefusal(error, Error, `writeConcern.${name}`, shown);
          return true;
        },
      );
    }
  });

  it('refuse names that they do not know, and what is neither a name nor an object', function () {
    for (const [name, shown, options] of [
      ['modelname', "'Order'", { modelname: 'Order' }],
      ['duration', '10', { duration: 10 }],
      ['options', '7', 7],
      ['options', 'true', true],
      ['options', '[]', []],
      ['options', 'Function', function Model() {}],
      ['modelName', "''", ''],
    ]) {
      assert.throws(
        () => apply(options),
        (error) => {
          isRefusal(error, TypeError, name, shown);
          return true;
        },
      );
    }
  });

  it('leave the schema as it was when they are refused', function () {
    const schema = new mongoose.Schema({ name: String });
    assert.throws(() => schema.plugin(lockRelease, { path: 7 }));
    assert.equal(schema.path('locked'), undefined);
    assert.equal(schema.methods.lock, undefined);
  });

  it('may all be left out, as undefined or null, or be given together', function () {
    for (const options of [undefined, null, {}]) assert.ok(apply(options).path('locked'));
    const all = {
      modelName: 'Order',
      path: 'busy',
      label: '',
      fence: true,
      writeConcern: { w: 'majority', j: true, wtimeoutMS: 1000 },
      exitTimeout: 0,
    };
    assert.ok(apply(all).path('busy'));
    const none = Object.fromEntries(Object.keys(all).map((name) => [name, undefined]));
    assert.ok(apply(none).path('locked'));
  });

  it('modelName, as a string or an option, locks through that model', async function () {
    const name = stage.freshName('Invoice');
    const Invoice = stage.connection.model(
      name,
      new mongoose.Schema({ number: Number, note: { type: String, select: false } }),
      'invoices',
    );
    for (const plugin of [name, { modelName: name }]) {
      const Draft = stage.lockable(
        { number: Number },
        { schema: { collection: 'drafts' }, plugin },
      );
      const draft = await Draft.create({ number: 1 });
      assert.equal(await draft.lock(LONG_MS), null, 'there is no invoice yet');
      await Invoice.collection.insertOne({ _id: draft._id, number: 2, note: 'private' });
      const locked = await draft.lock(LONG_MS);
      assert.ok(locked instanceof Invoice);
      assert.equal(locked.number, 2);
      assert.equal(locked.note, undefined);
      assert.equal((await stage.stored(draft)).lockedBy, undefined);
      assert.ok((await draft.release()) instanceof Invoice);
    }
  });

  it('modelName that is no model’s gives Mongoose’s own error, through the promise', async function () {
    const order = await stage.lockable({}, { plugin: 'NoSuchModel' }).create({});
    const error = await failureOf(order.lock(LONG_MS));
    assert.equal(error.name, 'MissingSchemaError');
    assert.match(error.message, /NoSuchModel/);
  });

  for (const [path, by] of [
    ['busy', 'busyBy'],
    ['state.busy', 'state.busyBy'],
  ]) {
    it(`path: ${path} is where the lock is, its holder in ${by}`, async function () {
      const Order = stage.lockable({ name: String, state: { step: Number } }, { plugin: { path } });
      const order = await Order.create({ name: 'one', state: { step: 1 } });
      assert.deepEqual(order.get(path), new Date(0));
      const locked = await order.lock(LONG_MS);
      assert.ok(locked.get(path) > new Date());
      assert.equal(await (await stage.load(order)).lock(LONG_MS), null);
      const raw = await Order.collection.findOne({ _id: order._id, [`${by}.token`]: 1 });
      assert.ok(raw, 'the record is at its path');
      assert.equal('locked' in raw || 'lockedBy' in raw, false);
      assert.equal(raw.state.step, 1);
      assert.equal(locked.state.step, 1);
      assert.equal(JSON.stringify([locked, await Order.find().lean()]).includes('busyBy'), false);
      locked.state.step = 2;
      await locked.save();
      assert.ok((await order.extend(2 * LONG_MS)).get(path) > locked.get(path));
      assert.equal((await order.release()).state.step, 2);
      await order.lock(LONG_MS);
      await stage.lapse(order, path);
      await (await stage.load(order)).lock(LONG_MS);
      order.name = 'two';
      assert.equal((await failureOf(order.save())).code, 'ERR_LOCK_LOST');
    });
  }

  it('label is stored as it is, whatever it says', async function () {
    for (const label of ['$password', '$$NOW', '', 'a.b', '{"$gt": 1}', 'é✓']) {
      const Order = stage.lockable({ password: String }, { plugin: { label } });
      const order = await Order.create({ password: 'secret' });
      await order.lock(LONG_MS);
      assert.equal((await stage.stored(order)).lockedBy.label, label);
      assert.equal(order.$lock.label, label);
    }
  });

  it('writeConcern goes with every write, majority unless it says otherwise', async function () {
    for (const [given, sent] of [
      [undefined, { w: 'majority' }],
      [{ w: 1 }, { w: 1 }],
      [{ j: true }, { w: 'majority', j: true }],
      [
        { w: 1, wtimeoutMS: 5000 },
        { w: 1, wtimeout: 5000 },
      ],
    ]) {
      const Order = stage.lockable({}, { plugin: { writeConcern: given } });
      const order = await Order.create({});
      const commands = await commandsDuring(Order, async () => {
        await order.lock(LONG_MS);
        await order.extend(LONG_MS);
        await order.release();
      });
      assert.equal(commands.length, 3);
      for (const { writeConcern, maxTimeMS } of commands) {
        for (const [name, value] of Object.entries(sent)) assert.equal(writeConcern[name], value);
        assert.ok(maxTimeMS > 0);
      }
    }
  });
});

/*
 * The first way to type `doc.lock`: the schema's option `methods`, everything else inferred. Compiled, never run.
 */
import { Schema, model } from 'mongoose';
import lockRelease from 'mongoose-lock-release';
import { expectSame } from './expect.js';

const schema = new Schema(
  { customer: { type: String, required: true }, total: Number },
  { methods: {} as lockRelease.LockReleaseMethods },
);
schema.plugin(lockRelease);
const Invoice = model('Invoice', schema);

export async function bill(): Promise<void> {
  const invoice = new Invoice({ customer: 'ada' });
  const locked = await invoice.lock(10_000);
  expectSame<typeof locked, typeof invoice | null>(true);
  // @ts-expect-error: the document may be null, when another holds the lock
  locked.customer;
  if (locked === null) return;
  expectSame<typeof locked.customer, string>(true);
  expectSame<typeof locked.total, number | null | undefined>(true);
  await locked.save();

  const extended = await locked.extend(10_000);
  expectSame<typeof extended, typeof invoice | null>(true);
  const released = await invoice.release();
  expectSame<typeof released, typeof invoice | null>(true);

  const found = await Invoice.findOne({ customer: 'ada' }).orFail();
  const again = await found.lock(10_000);
  expectSame<typeof again, typeof found | null>(true);
  // @ts-expect-error: a path that the schema does not have
  again?.colour;
}

export function billWithCallbacks(done: (error?: Error | null) => void): void {
  const invoice = new Invoice({ customer: 'ada' });
  const nothing = invoice.lock(10_000, (error, locked) => {
    expectSame<typeof error, Error | null>(true);
    expectSame<typeof locked, typeof invoice | null>(true);
    if (error) return done(error);
    if (!locked) return done(new Error('already processing'));
    locked.extend(10_000, (_error, extended) => {
      expectSame<typeof extended, typeof locked | null>(true);
    });
    locked.release((_error, released) => {
      expectSame<typeof released, typeof locked | null>(true);
      done();
    });
  });
  expectSame<typeof nothing, void>(true);
  invoice.lock(10_000, {}, (_error, locked) => locked?.customer.trim());
  invoice.lock(10_000, undefined, done);
  invoice.release(done);
}

export async function renewed(): Promise<void> {
  const invoice = await Invoice.findOne().orFail();
  await invoice.lock(10_000, { renew: true, maxHold: 60_000, maxStall: Infinity });
  await using held = await invoice.lock(10_000, { renew: true });
  expectSame<typeof held, typeof invoice | null>(true);

  const total = await invoice.withLock(10_000, async (locked, lock) => {
    expectSame<typeof locked, typeof invoice>(true);
    expectSame<typeof lock, lockRelease.Lock>(true);
    expectSame<typeof lock.signal, AbortSignal>(true);
    return locked.total ?? 0;
  });
  expectSame<typeof total, number>(true);
  const customer = await invoice.withLock(10_000, { renew: false }, (locked) => locked.customer);
  expectSame<typeof customer, string>(true);
  // @ts-expect-error: the work is missing
  await invoice.withLock(10_000);
  // @ts-expect-error: the work is no string
  await invoice.withLock(10_000, {}, 'work');
  // @ts-expect-error: an option that does not exist
  await invoice.withLock(10_000, { patience: 5 }, () => {});
  // @ts-expect-error: renewed or not
  await invoice.lock(10_000, { renew: 'always' });
}

export async function patient(request: AbortSignal): Promise<void> {
  const invoice = await Invoice.findOne().orFail();
  const locked = await invoice.lock(10_000, { wait: 5000, signal: AbortSignal.timeout(1000) });
  expectSame<typeof locked, typeof invoice | null>(true);
  await invoice.lock(10_000, { wait: Infinity, signal: undefined, renew: true });
  await invoice.lock(10_000, { wait: undefined });
  const nothing = invoice.lock(10_000, { wait: 5000, signal: request }, (error, doc) => {
    expectSame<typeof error, Error | null>(true);
    expectSame<typeof doc, typeof invoice | null>(true);
  });
  expectSame<typeof nothing, void>(true);
  const options: lockRelease.LockOptions = { wait: 5000, signal: request };
  const total = await invoice.withLock(10_000, options, (doc) => doc.total ?? 0);
  expectSame<typeof total, number>(true);
  // @ts-expect-error: milliseconds are a number
  await invoice.lock(10_000, { wait: '5s' });
  // @ts-expect-error: nor null
  await invoice.lock(10_000, { wait: null });
  // @ts-expect-error: the signal, not its controller
  await invoice.lock(10_000, { signal: new AbortController() });
  // @ts-expect-error: nor null
  await invoice.withLock(10_000, { signal: null }, () => {});
}

export async function refusals(): Promise<void> {
  const invoice = new Invoice({ customer: 'ada' });
  // @ts-expect-error: the duration is missing
  await invoice.lock();
  // @ts-expect-error: milliseconds are a number
  await invoice.lock('10');
  // @ts-expect-error: milliseconds are no BigInt
  await invoice.lock(10n);
  // @ts-expect-error: nor null
  await invoice.lock(null);
  // @ts-expect-error: an option that does not exist
  await invoice.lock(10_000, { patience: 5 });
  // @ts-expect-error: a callback is a function
  invoice.lock(10_000, {}, 'done');
  // @ts-expect-error: the callback of a document, not of a number
  invoice.lock(10_000, (_error: Error | null, _locked: number | null) => {});
  // @ts-expect-error: a call with a callback returns no promise
  invoice.lock(10_000, () => {}).then(() => {});
  // @ts-expect-error: release has no duration
  await invoice.release(10_000);
  // @ts-expect-error: extend has one
  await invoice.extend();
  // @ts-expect-error: extend takes no options
  await invoice.extend(10_000, {});
}
